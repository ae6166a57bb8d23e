"""The ledger: spends, requests, model versions and facts of one workspace, as verbs on its journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from privshard.core.digest import canonical_json
from privshard.core.errors import InputError, VerificationError
from privshard.core.model import Composition
from privshard.core.privacy import MechanismPlan
from privshard.core.removal import RemovalRequest
from privshard.store import chain, views
from privshard.store.journal import Journal
from privshard.store.lease import Lease, hold_lease
from privshard.store.ledger_schema import GENESIS, Entry

Admit = Callable[[list[MechanismPlan]], None]
AdmitWorkspace = Callable[[dict[int, list[MechanismPlan]]], None]
Given = ParamSpec("Given")
Result = TypeVar("Result")


def _repeatable(verb: Callable[Concatenate[Ledger, Given], Result]) -> Callable[Concatenate[Ledger, Given], Result]:
    """A verb that decides by what is recorded, so that it may run again where a server went away before its commit."""

    @wraps(verb)
    def again(ledger: Ledger, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return ledger._journal.repeat(lambda: verb(ledger, *args, **kwargs))

    return again


class Ledger:
    """The transactional record of one workspace. Make one with `create` or `open`.

    Guarantees: every method that writes commits all of its entries or none, alone among writers; what is returned
    was committed. Nothing is ever changed or deleted. Threads and forked processes may share one object.
    A place that fails is a ResourceError, damaged content a VerificationError. Where a database server restarts, a
    read and a verb by itself wait for it and go on; a `transaction` of several verbs ends in LedgerInterruptedError
    with nothing of it committed.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __repr__(self) -> str:
        return f"Ledger({self._journal.place!r})"

    @staticmethod
    def create(place: str | os.PathLike[str], *, workspace_id: str) -> Ledger:
        """A new ledger in a SQLite file or at a database URL; InputError where there is one."""
        return Ledger(Journal.create(place, workspace_id=workspace_id))

    @staticmethod
    def at(place: str | os.PathLike[str]) -> Ledger:
        """The ledger that a place has, or will have after `make`: to hold a database before anything is in it."""
        return Ledger(Journal(place))

    @property
    def is_made(self) -> bool:
        """Whether there is a ledger at its place by now."""
        return self._journal.is_made

    def make(self, *, workspace_id: str) -> None:
        """Make the ledger where its place has none; InputError where it has one."""
        self._journal.make(workspace_id=workspace_id)

    @staticmethod
    def open(place: str | os.PathLike[str]) -> Ledger:
        """An existing ledger; InputError where there is none, or where a newer privshard wrote it."""
        return Ledger(Journal.open(place))

    @staticmethod
    def exists(place: str | os.PathLike[str]) -> bool:
        """Whether there is a ledger; one whose creation was interrupted is none."""
        return Journal.exists(place)

    def close(self) -> None:
        """Let go of the database."""
        self._journal.close()

    def discard_unused(self) -> None:
        """Take back the creation of a ledger in which nothing was ever reserved, counted or published, so that another
        recipe may use the place; InputError where something was."""
        self._journal.discard(only={GENESIS, "fact", "object"})

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def workspace_id(self) -> str:
        """The workspace that this ledger is of."""
        return self._journal.genesis.data["workspace"]

    @property
    def created(self) -> str:
        """When the ledger was made."""
        return self._journal.genesis.created

    @property
    def head(self) -> tuple[int, str]:
        """(seq, digest) of the last entry: kept elsewhere, it anchors `verify_chain`."""
        return self._journal.head

    def transaction(self) -> AbstractContextManager[None]:
        """One commit point for everything this thread writes in the block; an exception undoes all of it.

        No other writer's transaction overlaps it. Blocks may be nested; the outermost one commits.
        """
        return self._journal.transaction()

    def kept_open(self) -> AbstractContextManager[None]:
        """Many short transactions follow: make them cheaper. See `Journal.kept_open`."""
        return self._journal.kept_open()

    def hold_lease(self, *, root: str) -> AbstractContextManager[Lease]:
        """Hold the workspace at `root` by this ledger's database server; see `lease.hold_lease`."""
        return hold_lease(self._journal, root=root)

    def clock_offset_s(self) -> float:
        """How far the database server's clock is ahead of this machine's."""
        return self._journal.clock_offset_s()

    @property
    def is_shared(self) -> bool:
        """Whether clients on any machine may use it: a database server, not a file."""
        return self._journal.is_shared

    def verify_chain(self, *, anchor: tuple[int, str] | None = None) -> list[str]:
        """Problems of the chain in plain words, naming the entry; empty if it is sound. See `chain.problems`."""
        return [*self._journal.damage(), *chain.problems(self._journal.entries(), anchor=anchor)]

    def require_sound(self) -> None:
        """VerificationError, naming the first damaged entry, unless the chain is sound: whoever decides by it, asks."""
        problems = chain.problems(self._journal.entries())
        if problems:
            more = f" ({len(problems) - 1} more problems.)" if len(problems) > 1 else ""
            raise VerificationError(
                f"Expected a sound ledger at {self._journal.place}, but: {problems[0]}{more}",
                remedy="Restore the ledger from a backup; until then nothing can be spent.",
            )

    # Privacy spends

    def reserve(
        self,
        run_id: str,
        *,
        shard: int,
        attempt: int,
        plan: MechanismPlan,
        admit: Admit,
        admit_workspace: AdmitWorkspace | None = None,
        marked: bool = False,
    ) -> views.Reservation:
        """Reserve the spend of one training before its first noisy step; see `reserve_all`."""
        (held,) = self.reserve_all(
            [views.NewRun(run_id, shard, attempt)],
            plan=plan,
            admit=admit,
            admit_workspace=admit_workspace,
            marked=marked,
        )
        return held

    @_repeatable
    def reserve_all(
        self,
        runs: Sequence[views.NewRun],
        *,
        plan: MechanismPlan,
        admit: Admit,
        admit_workspace: AdmitWorkspace | None = None,
        marked: bool = False,
    ) -> list[views.Reservation]:
        """Reserve the spends of trainings, all or none of them, before the first noisy step.

        In one transaction: `admit` gets the plans that count as spent on the shard with `plan` at the end, and
        `admit_workspace` those of all shards, by shard; either raises BudgetError to refuse, and nothing is written
        then. marked: whoever runs these promises to call `release` before a result is let out of its worker.
        A run that is there with an equal plan is returned as recorded, without a second entry or a second `admit`:
        look at its state and at `released`, since a run that was started and did not report may have released
        something. InputError for another plan, a voided run, or an attempt used before; VerificationError where the
        chain is not sound, because what was spent is then unknown.
        """
        with self.transaction():
            self.require_sound()
            recorded = self._reservations()
            known = {item.run_id: item for item in recorded}
            held: dict[int, list[views.Reservation]] = {}
            for item in recorded:
                held.setdefault(item.shard, []).append(item)
            spent = {shard: plans for shard, mine in held.items() if (plans := _spent(mine))}
            new = [run for run in runs if run.run_id not in known]
            admitted: set[tuple[MechanismPlan, ...]] = set()
            for run in new:
                used = {item.attempt for item in held.get(run.shard, ())}
                if run.attempt in used:
                    raise InputError(
                        f"Run {run.run_id}: expected an unused attempt of shard {run.shard}, got {run.attempt}.",
                        remedy=f"Take {max(used) + 1}.",
                    )
                spent[run.shard] = [*spent.get(run.shard, []), plan]
                if (after := tuple(spent[run.shard])) not in admitted:
                    admit(list(after))
                    admitted.add(after)
            if admit_workspace is not None and new:
                admit_workspace(spent)
            content = {"plan": asdict(plan), **({"marked": True} if marked else {})}
            for run in new:
                self._journal.append(
                    "reserve", run_id=run.run_id, shard=run.shard, data={"attempt": run.attempt, **content}
                )
            if new:
                known |= {item.run_id: item for item in self._reservations()}
            for run in runs:
                _same_run(known[run.run_id], shard=run.shard, attempt=run.attempt, plan=plan)
            return [known[run.run_id] for run in runs]

    @_repeatable
    def release(self, run_id: str) -> None:
        """Record, before a result is let out of its worker, that it may be from now on: the run can't be voided or run
        again any more. InputError where that is recorded already, so that one reservation lets out one result."""
        with self.transaction():
            held = next(iter(self._reservations(run_id=run_id)), None)
            if held is None or held.state != "reserved" or held.released:
                state = "never reserved" if held is None else held.state if held.state != "reserved" else "released"
                raise InputError(
                    f"Expected a reserved run of which nothing was let out, got {run_id}, which is {state}.",
                    remedy="Another controller has finished this run; leave the result where it is.",
                )
            self._journal.append("release", run_id=run_id, shard=held.shard, data={})

    def commit(self, run_id: str, *, component: str) -> None:
        """Record that a reserved run made `component`. Again with the same component: nothing happens."""
        self._close("commit", run_id, {"component": component})

    def void(self, run_id: str, *, reason: str) -> None:
        """Give back the reservation of a run that provably let nothing leave its worker; it stops counting."""
        self._close("void", run_id, {"reason": reason})

    def reservations(self) -> list[views.Reservation]:
        """All reservations, in order."""
        return self._reservations()

    def spent_plans(self, shard: int) -> list[MechanismPlan]:
        """The plans that count as spent on a shard: all that were reserved and not voided."""
        return _spent(self._reservations(shard=shard))

    def spent_by_shard(self) -> dict[int, list[MechanismPlan]]:
        """Shard -> the plans that count as spent on it, of every shard that has any."""
        held: dict[int, list[MechanismPlan]] = {}
        for item in self._reservations():
            if item.state != "voided":
                held.setdefault(item.shard, []).append(item.plan)
        return held

    def next_attempt(self, shard: int) -> int:
        """The number of a shard's next attempt; numbers are never used twice, voided ones included."""
        return max((item.attempt for item in self._reservations(shard=shard)), default=-1) + 1

    @_repeatable
    def record_count(self, noisy_count: float, *, noise_multiplier: float, nominal: float) -> views.NoisyCount:
        """Record the workspace's one noisy count. Where there is one, it is returned and `noisy_count` is to be
        thrown away unseen; InputError where the noise differs."""
        with self.transaction():
            held = self.noisy_count()
            if held is None:
                data = {"value": noisy_count, "noise_multiplier": noise_multiplier, "nominal": nominal}
                self._journal.append("count", run_id="count", data=data)
                return views.NoisyCount(noisy_count, noise_multiplier, nominal)
            if held.noise_multiplier != noise_multiplier:
                raise InputError(
                    f"Expected the count's noise multiplier {held.noise_multiplier}, got {noise_multiplier}.",
                    remedy="A workspace releases one noisy count; use the recorded one.",
                )
            return held

    def noisy_count(self) -> views.NoisyCount | None:
        """The recorded noisy count, None before there is one."""
        return next((_count(entry) for entry in self._journal.entries("count")), None)

    # Model versions

    @_repeatable
    def add_model(self, composition: Composition, *, reason: str, metrics: Mapping[str, Any] | None = None) -> int:
        """Publish a composition as the next model version, 1, 2, …; the version."""
        with self.transaction():
            last = self._journal.last("model")
            version = 1 if last is None else last.data["version"] + 1
            data = {"version": version, "composition": composition.to_json(), "metrics": metrics, "reason": reason}
            self._journal.append("model", run_id=chain.model_run_id(version), data=data)
            return version

    def models(self) -> list[views.ModelVersion]:
        """All model versions, in order."""
        return views.models(self._journal.entries("model"))

    def current_model(self) -> views.ModelVersion | None:
        """The latest model version, None before the first."""
        last = self._journal.last("model")
        return None if last is None else views.models([last])[0]

    # Removal requests

    @_repeatable
    def add_request(self, request: RemovalRequest) -> None:
        """Record that somebody asked. The same request again: nothing happens; another one of its id: InputError."""
        with self.transaction():
            held = self._request(request.id)
            if held is None:
                data = {"subject_hash": request.subject_hash, "mode": request.mode}
                self._journal.append("request", run_id=request.id, data=data)
            elif held.request != request:
                raise InputError(f"Request {request.id}: expected {held.request}, got {request}.")

    @_repeatable
    def complete_request(self, request_id: str, *, receipt: Mapping[str, Any], suppress: bool = True) -> None:
        """Record a request's receipt and, in the same transaction, that its subject may never be ingested again."""
        with self.transaction():
            held = self._request(request_id)
            if held is None:
                raise InputError(f"Expected a recorded request, got {request_id}.", remedy="Add the request first.")
            if held.receipt is not None:
                if canonical_json(held.receipt) != canonical_json(receipt):
                    raise InputError(f"Request {request_id} was completed at {held.completed} with another receipt.")
                return
            self._journal.append("complete", run_id=request_id, data={"receipt": receipt})
            if suppress:
                self._journal.append("suppress", run_id=request_id, data={"subject_hash": held.request.subject_hash})

    def requests(self) -> list[views.RecordedRequest]:
        """All requests, in order."""
        return views.requests(self._journal.entries("request", "complete"))

    def suppressed(self) -> frozenset[str]:
        """Hashes of the subjects that may not be ingested again."""
        return frozenset(entry.data["subject_hash"] for entry in self._journal.entries("suppress"))

    def receipt_for(self, subject_hash: str) -> Mapping[str, Any] | None:
        """The latest receipt about a subject, None where there is none."""
        receipts = [item.receipt for item in self.requests() if item.request.subject_hash == subject_hash]
        return next((receipt for receipt in reversed(receipts) if receipt is not None), None)

    # Public facts

    @_repeatable
    def put(self, key: str, value: Any) -> None:
        """Record a public fact, a JSON value; the last one of a key wins. An unchanged one adds no entry."""
        with self.transaction():
            facts = self.facts()
            if key not in facts or canonical_json(facts[key]) != canonical_json(value):
                self._journal.append("fact", data={"key": key, "value": value})

    def get(self, key: str, default: Any = None) -> Any:
        """The latest fact of a key."""
        return self.facts().get(key, default)

    def facts(self) -> dict[str, Any]:
        """The latest fact of every key."""
        return views.facts(self._journal.entries("fact"))

    # Which objects count, of those that are rewritten

    @_repeatable
    def name_objects(self, names: Mapping[str, str | None]) -> None:
        """Record path -> the name under which its object lies from now on; None: there is none any more."""
        with self.transaction():
            for path, name in names.items():
                self._journal.append("object", data={"path": path, "name": name})

    def object_names(self) -> dict[str, str]:
        """Path -> name, of every object that counts and lies under another name than its path."""
        return views.object_names(self._journal.entries("object"))

    def _reservations(self, *, shard: int | None = None, run_id: str | None = None) -> list[views.Reservation]:
        return views.reservations(
            self._journal.entries("reserve", "release", "commit", "void", shard=shard, run_id=run_id)
        )

    @_repeatable
    def _close(self, kind: str, run_id: str, data: Mapping[str, Any]) -> None:
        """Commit or void a run that is reserved; the same closing again does nothing."""
        with self.transaction():
            held = next(iter(self._reservations(run_id=run_id)), None)
            if held is None:
                raise InputError(f"Expected a reserved run to {kind}, got {run_id}, which was never reserved.")
            if held.state == "reserved" and kind == "void" and self._journal.entries("release", run_id=run_id):
                raise InputError(
                    f"Run {run_id}: expected one of which nothing was let out, got one that is marked as released.",
                    remedy="It stays spent; start a new attempt.",
                )
            if held.state == "reserved":
                self._journal.append(kind, run_id=run_id, shard=held.shard, data=data)
            elif (held.state, held.component) != ("committed" if kind == "commit" else "voided", data.get("component")):
                raise InputError(
                    f"Expected a reserved run to {kind}, got {run_id}, which is {held.state}"
                    f"{f' as {held.component}' if held.component else ''}.",
                    remedy="Start a new attempt.",
                )

    def _request(self, request_id: str) -> views.RecordedRequest | None:
        return next(iter(views.requests(self._journal.entries("request", "complete", run_id=request_id))), None)


def _count(entry: Entry) -> views.NoisyCount:
    return views.NoisyCount(entry.data["value"], entry.data["noise_multiplier"], entry.data["nominal"])


def _spent(held: list[views.Reservation]) -> list[MechanismPlan]:
    return [item.plan for item in held if item.state != "voided"]


def _same_run(held: views.Reservation, *, shard: int, attempt: int, plan: MechanismPlan) -> views.Reservation:
    """`held`, if it is the same run and still counts."""
    if (held.shard, held.attempt, held.plan) != (shard, attempt, plan):
        raise InputError(
            f"Run {held.run_id}: reserved as shard {held.shard}, attempt {held.attempt}, {held.plan}; "
            f"now asked for shard {shard}, attempt {attempt}, {plan}.",
            remedy="A run keeps its plan; use a new run id.",
        )
    if held.state == "voided":
        raise InputError(
            f"Run {held.run_id} was voided and may not start again.", remedy="Reserve a new attempt with a new run id."
        )
    return held
