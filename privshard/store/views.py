"""What the ledger's entries say: frozen views, derived by pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from privshard.core.errors import InputError
from privshard.core.model import Composition
from privshard.core.privacy import MechanismPlan
from privshard.core.removal import RemovalRequest
from privshard.store.ledger_schema import Entry

State = Literal["reserved", "committed", "voided"]


@dataclass(frozen=True)
class NewRun:
    """One attempt at training a shard, to be reserved."""

    run_id: str
    shard: int
    attempt: int


@dataclass(frozen=True)
class Reservation:
    """One attempt at training a shard, and whether it counts: all but voided ones do.

    released: whether its result may have left its worker. False only where the run was reserved as one that is marked
    before that (`Ledger.release`), and no mark is there. closed: when it was committed or voided.
    """

    run_id: str
    shard: int
    attempt: int
    plan: MechanismPlan
    state: State
    component: str | None
    created: str
    released: bool = True
    closed: str | None = None


@dataclass(frozen=True)
class ModelVersion:
    """One published composition."""

    version: int
    composition: Composition
    metrics: Mapping[str, Any] | None
    reason: str
    created: str


@dataclass(frozen=True)
class NoisyCount:
    """The one noisy count of a workspace: what was released, with which noise, and the public constant made of it."""

    value: float
    noise_multiplier: float
    nominal: float


@dataclass(frozen=True)
class RecordedRequest:
    """A removal request, and its receipt once it is completed."""

    request: RemovalRequest
    created: str
    receipt: Mapping[str, Any] | None
    completed: str | None


def reservations(entries: Iterable[Entry]) -> list[Reservation]:
    """Every reservation in order, from reserve, release, commit and void entries."""
    found: dict[str | None, Reservation] = {}
    for entry in entries:
        if entry.kind == "reserve":
            found[entry.run_id] = _reservation(entry)
        elif entry.run_id in found:
            found[entry.run_id] = _closed(found[entry.run_id], entry)
        else:
            raise entry.damaged("nothing was reserved under its run id")
    return list(found.values())


def models(entries: Iterable[Entry]) -> list[ModelVersion]:
    """Every model version in order, from model entries."""
    return [
        ModelVersion(
            version=entry.data["version"],
            composition=Composition.from_json(entry.data["composition"]),
            metrics=entry.data["metrics"],
            reason=entry.data["reason"],
            created=entry.created,
        )
        for entry in entries
    ]


def requests(entries: Iterable[Entry]) -> list[RecordedRequest]:
    """Every request in order, from request and complete entries."""
    found: dict[str | None, RecordedRequest] = {}
    for entry in entries:
        if entry.kind == "request":
            request = RemovalRequest(str(entry.run_id), entry.data["subject_hash"], entry.data["mode"])
            found[entry.run_id] = RecordedRequest(request, entry.created, None, None)
        else:
            asked = found[entry.run_id]
            found[entry.run_id] = RecordedRequest(asked.request, asked.created, entry.data["receipt"], entry.created)
    return list(found.values())


def facts(entries: Iterable[Entry]) -> dict[str, Any]:
    """The facts by key, from fact entries: the last one wins."""
    return {entry.data["key"]: entry.data["value"] for entry in entries}


def object_names(entries: Iterable[Entry]) -> dict[str, str]:
    """Path -> name of the object that counts, from object entries: the last one wins, and may say "none"."""
    last = {entry.data["path"]: entry.data["name"] for entry in entries}
    return {path: name for path, name in last.items() if name is not None}


def _reservation(entry: Entry) -> Reservation:
    try:
        attempt, plan = entry.data["attempt"], MechanismPlan(**entry.data["plan"])
    except (KeyError, TypeError, InputError) as error:
        raise entry.damaged(f"it holds no plan ({error})") from error
    return Reservation(
        run_id=str(entry.run_id),
        shard=int(entry.shard or 0),
        attempt=attempt,
        plan=plan,
        state="reserved",
        component=None,
        created=entry.created,
        released=not entry.data.get("marked", False),
    )


def _closed(opened: Reservation, entry: Entry) -> Reservation:
    if entry.kind == "release":
        return replace(opened, released=True)
    state: State = "committed" if entry.kind == "commit" else "voided"
    return replace(opened, state=state, component=entry.data.get("component"), closed=entry.created)
