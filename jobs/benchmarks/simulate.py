"""A large deployment on the real partition, policy and ledger: `python -m jobs.benchmarks.simulate`.

Nothing is trained and no data is made: subjects are assigned by the real keyed partition, trainings are reserved,
released and committed in the real ledger under the real budget rule, and removals are looked up and recorded, on SQLite
or on a database server. What is timed is what one controller can do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from jobs.benchmarks.scheduling import fsync_s, resident_mib
from privshard.core.digest import keyed_digest
from privshard.core.model import Composition
from privshard.core.partition import Partition
from privshard.core.privacy import MechanismPlan
from privshard.core.removal import RemovalRequest
from privshard.runtime.policy import Decision, JobState, Limits, Seen, advance, decide
from privshard.store.ledger import Ledger
from privshard.store.views import NewRun

PLAN = MechanismPlan("subject", 1.0, 60, 1.0, 6.0, 200.0, 1e-5, "rdp")
_KEY = b"simulated, and so not a secret. "


@dataclass(frozen=True)
class Rates:
    """What was measured. Times are wall times; rates are per second."""

    place: str
    shards: int
    subjects: int
    slots: int
    assigned_per_s: float
    largest_shard: int
    smallest_shard: int
    decisions_per_s: float
    decide_ms_each: float
    reserve_all_s: float
    trained_per_s: float
    ledger_entries: int
    ledger_bytes: int | None
    verify_chain_s: float
    open_and_read_s: float
    removals: int
    removals_per_s: float
    peak_mib: float
    fsync_ms: float
    load: float
    machine: str
    date: str


def simulate(*, shards: int, subjects: int, slots: int, removals: int, place: str, folder: Path) -> Rates:
    """Assign, schedule, account, forget. place: "sqlite" or a database URL without a ledger in it."""
    partition = Partition(_KEY, shards)
    with _timed() as assigning:
        sizes = Counter(partition.shard_of(f"subject-{number}") for number in range(subjects))
    with _timed() as scheduling:
        decisions = _schedule(shards, slots)
    where = str(folder / "ledger.db") if place == "sqlite" else place
    rule = _admit()
    rule([PLAN])  # its first answer also loads what it reasons with
    with Ledger.create(where, workspace_id="0" * 32) as ledger:
        with _timed() as reserving:
            runs = [NewRun(f"shard-{shard:03d}-attempt-000", shard, 0) for shard in range(shards)]
            ledger.reserve_all(runs, plan=PLAN, admit=rule, marked=True)
        with _timed() as training, ledger.kept_open():
            for run in runs:
                ledger.release(run.run_id)
                ledger.commit(run.run_id, component=f"{run.shard:064x}")
        ledger.add_model(Composition.uniform("0" * 64, [f"{run.shard:064x}" for run in runs]), reason="train")
        with _timed() as forgetting, ledger.kept_open():
            for number in range(removals):
                _forget(ledger, partition, f"subject-{number}")
        with _timed() as verifying:
            problems = ledger.verify_chain()
        assert problems == [], problems[:3]
        entries = ledger.head[0]
    with _timed() as opening, Ledger.open(where) as ledger:
        assert len(ledger.reservations()) >= shards
        assert ledger.current_model() is not None
    return Rates(
        place="SQLite" if place == "sqlite" else place.partition(":")[0],
        shards=shards,
        subjects=subjects,
        slots=slots,
        assigned_per_s=subjects / assigning(),
        largest_shard=max(sizes.values(), default=0),
        smallest_shard=min((sizes[shard] for shard in range(shards)), default=0),
        decisions_per_s=decisions / scheduling(),
        decide_ms_each=1000 * scheduling() / max(1, shards),
        reserve_all_s=reserving(),
        trained_per_s=shards / training(),
        ledger_entries=entries,
        ledger_bytes=Path(where).stat().st_size if place == "sqlite" else None,
        verify_chain_s=verifying(),
        open_and_read_s=opening(),
        removals=removals,
        removals_per_s=removals / forgetting() if removals else 0.0,
        peak_mib=max(resident_mib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        fsync_ms=1000 * fsync_s(folder / "probe"),
        load=os.getloadavg()[0],
        machine=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        date=datetime.now(UTC).date().isoformat(),
    )


def main(given: Sequence[str] | None = None) -> int:
    """Simulate and print a row of the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=4000)
    parser.add_argument("--subjects", type=int, default=1_000_000)
    parser.add_argument("--slots", type=int, default=64, help="workers at once")
    parser.add_argument("--removals", type=int, default=50)
    parser.add_argument("--ledger", default="sqlite", help="sqlite, or the URL of an empty database")
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory(prefix="privshard-simulate-") as folder:
        rates = simulate(
            shards=options.shards,
            subjects=options.subjects,
            slots=options.slots,
            removals=options.removals,
            place=options.ledger,
            folder=Path(folder),
        )
    print(table([rates]))
    if options.json:
        Path(options.json).write_text(json.dumps(asdict(rates), indent=1))
    return 0


def table(rates: Sequence[Rates]) -> str:
    """One row a simulation."""
    head = ("ledger", "shards", "subjects", "assigned /s", "scheduling, ms a shard", "reserve all, s", "trained /s")
    head += ("removals /s", "entries", "verify chain, s", "read, s", "peak, MiB", "fsync, ms", "load")
    rows = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for each in rates:
        cells = (
            *(each.place, f"{each.shards:,}", f"{each.subjects:,}", f"{each.assigned_per_s:,.0f}"),
            *(f"{each.decide_ms_each:.2f}", f"{each.reserve_all_s:.1f}", f"{each.trained_per_s:.1f}"),
            *(f"{each.removals_per_s:.1f}", f"{each.ledger_entries:,}", f"{each.verify_chain_s:.2f}"),
            *(f"{each.open_and_read_s:.2f}", f"{each.peak_mib:.0f}", f"{each.fsync_ms:.1f}", f"{each.load:.0f}"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _schedule(shards: int, slots: int) -> int:
    """Drive the policy through all jobs, every active one a step further each round; how many decisions it took."""
    follows: dict[str, Seen] = {"starting": "ready", "running": "finished", "collecting": "returned"}
    states = {f"run-{shard}": JobState(f"run-{shard}") for shard in range(shards)}
    taken = 0
    while not all(state.over for state in states.values()):
        seen: dict[str, Seen] = {name: follows[state.phase] for name, state in states.items() if state.active}
        decisions: list[Decision] = decide(list(states.values()), seen, Limits(slots), quiet_s=0.0)
        for decision in decisions:
            states[decision.run_id] = advance(states[decision.run_id], decision)
        taken += len(decisions)
    return taken


def _forget(ledger: Ledger, partition: Partition, subject: str) -> None:
    """What a removal by dropping asks of the ledger: who, which component, the next model, the receipt."""
    model = ledger.current_model()
    assert model is not None
    component = f"{partition.shard_of(subject):064x}"
    digest = keyed_digest(_KEY, "privshard.subj", subject)
    request = RemovalRequest(digest[:16], digest, "drop")
    ledger.add_request(request)
    with ledger.transaction():
        if component in model.composition.weights:
            ledger.add_model(model.composition.without({component}), reason=f"forget {request.id}")
        ledger.complete_request(request.id, receipt={"guarantee": "exact_drop"}, suppress=True)


def _admit() -> Callable[[list[MechanismPlan]], None]:
    """The real rule, with room for one training and one retraining."""
    from privshard.privacy.budget import admit
    from privshard.privacy.plan import spend_of

    return admit(spend_of([PLAN, PLAN]).epsilon)


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    """How long the block took."""
    began, ended = time.perf_counter(), 0.0
    try:
        yield lambda: max(1e-9, ended - began)
    finally:
        ended = time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
