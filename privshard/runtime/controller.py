"""Carries out the policy's decisions on a fleet of workers until every job has its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from privshard.runtime.policy import Decision, JobState, Limits, Seen, advance, decide

TICK_S = 0.2


@dataclass(frozen=True)
class Sighting:
    """What a worker was seen doing, with the value it returned or the error it ended in."""

    seen: Seen
    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Outcome:
    """How one job ended: with a value, or with an error."""

    run_id: str
    value: Any = None
    error: Exception | None = None
    released: bool = False


class Fleet(Protocol):
    """Workers, one a job. Nothing here blocks longer than the time it is given."""

    def start(self, run_id: str) -> None:
        """Ask for a worker for this job."""
        ...

    def run(self, run_id: str) -> None:
        """Tell its ready worker to do the job."""
        ...

    def poll(self, timeout_s: float) -> Mapping[str, Sighting]:
        """See what every worker does now, waiting up to `timeout_s` for something to happen."""
        ...

    def stop(self, run_id: str) -> None:
        """Release its worker at once, whatever it does."""
        ...

    def shortage(self) -> Exception:
        """The error that says why a worker did not come."""
        ...


def supervise(
    run_ids: Sequence[str], fleet: Fleet, *, limits: Limits, clock: Callable[[], float] = time.monotonic
) -> Generator[Outcome, None, None]:
    """Run all jobs and yield each outcome once, as it comes.

    A worker is released before its outcome is yielded, and free slots are filled before the consumer gets its turn.
    Abandoning the iterator, or an error in the consumer, releases every worker.
    """
    states = {run_id: JobState(run_id) for run_id in run_ids}
    try:
        sightings: Mapping[str, Sighting] = {}
        changed_s = clock()
        while True:
            seen: dict[str, Seen] = {run_id: sighting.seen for run_id, sighting in sightings.items()}
            decisions = decide(list(states.values()), seen, limits, quiet_s=clock() - changed_s)
            outcomes = []
            for decision in decisions:
                states[decision.run_id] = advance(states[decision.run_id], decision)
                outcome = _carry_out(decision, fleet, sightings.get(decision.run_id))
                outcomes += [outcome] if outcome else []
            yield from outcomes
            if all(state.over for state in states.values()):
                return
            if decisions:
                changed_s = clock()
            sightings = fleet.poll(TICK_S)
    finally:
        for state in states.values():
            if state.active:
                fleet.stop(state.run_id)


def _carry_out(decision: Decision, fleet: Fleet, sighting: Sighting | None) -> Outcome | None:
    """Do what was decided; the outcome, if that ends the job."""
    run_id = decision.run_id
    if decision.action == "start":
        fleet.start(run_id)
        return None
    if decision.action == "run":
        fleet.run(run_id)
        return None
    error = fleet.shortage() if decision.unscheduled else sighting.error if sighting else None
    fleet.stop(run_id)
    if decision.action == "finish":
        return Outcome(run_id, value=sighting.value if sighting else None)
    if decision.action == "fail":
        return Outcome(run_id, error=error, released=decision.released)
    return None
