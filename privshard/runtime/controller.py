"""Carries out the policy's decisions on a fleet of workers until every job has its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from privshard.core.jobs import BeforeRelease
from privshard.runtime.events import OnEvent, RunEvent, What, WorkerPlace, unwatched
from privshard.runtime.policy import Decision, JobState, Limits, Seen, advance, decide

TICK_S = 0.2
_TOLD: Mapping[str, What] = {"start": "starting", "run": "running", "collect": "collecting", "finish": "done"}


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
    """Workers, one a job at a time. Nothing here blocks longer than the time it is given."""

    def start(self, run_id: str) -> None:
        """Ask for a worker for this job."""
        ...

    def run(self, run_id: str) -> None:
        """Tell its ready worker to do the job."""
        ...

    def collect(self, run_id: str) -> None:
        """Ask its finished worker for the result."""
        ...

    def poll(self, timeout_s: float) -> Mapping[str, Sighting]:
        """See what every worker does now, waiting up to `timeout_s` for something to happen."""
        ...

    def place(self, run_id: str) -> WorkerPlace | None:
        """Where its worker is, once that is known."""
        ...

    def stop(self, run_id: str) -> None:
        """Release its worker at once, whatever it does."""
        ...

    def free(self, run_id: str, *, keep: bool) -> None:
        """Its worker has done its job: keep it for another one, or release it."""
        ...

    def close(self) -> None:
        """Release every worker, kept ones included."""
        ...

    def shortage(self) -> Exception:
        """The error that says why a worker did not come."""
        ...


class Lane(Protocol):
    """What controllers on one cluster tell each other, so that removals go before queued training."""

    def held(self) -> bool:
        """Whether to start nothing, because removals wait for room."""
        ...

    def room_to_come(self) -> bool:
        """Whether others hold the cluster who will make room."""
        ...

    def tell(self, *, waiting: bool) -> None:
        """Say that we are here, and whether we wait for workers."""
        ...

    def leave(self) -> None:
        """Say that we are done."""
        ...


class NoLane:
    """Nobody else is on this cluster."""

    def held(self) -> bool:
        """Never."""
        return False

    def room_to_come(self) -> bool:
        """Nobody makes room."""
        return False

    def tell(self, *, waiting: bool) -> None:
        """Nobody listens."""

    def leave(self) -> None:
        """Nobody notices."""


def supervise(
    run_ids: Sequence[str],
    fleet: Fleet,
    *,
    limits: Limits,
    before_release: BeforeRelease = lambda _: None,
    on_event: OnEvent = unwatched,
    on_tick: Callable[[], None] = lambda: None,
    lane: Lane | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Outcome, None, None]:
    """Run all jobs and yield each outcome once, as it comes.

    before_release is called before a worker is asked for its result; if it raises, nobody asks. on_tick is called
    several times a second, and may end the run by raising. A worker is free
    before its outcome is yielded, and free slots are filled before the consumer gets its turn. Abandoning the iterator,
    or an error in the consumer, releases every worker.
    """
    states = {run_id: JobState(run_id) for run_id in run_ids}
    lane = lane or NoLane()
    left = len(states)
    try:
        for run_id in run_ids:
            on_event(RunEvent("queued", run_id))
        sightings: Mapping[str, Sighting] = {}
        changed_s = clock()
        while True:
            seen: dict[str, Seen] = {run_id: sighting.seen for run_id, sighting in sightings.items()}
            held = lane.held()
            decisions = decide(
                list(states.values()),
                seen,
                limits,
                quiet_s=clock() - changed_s,
                held=held,
                room_to_come=lane.room_to_come(),
            )
            outcomes = []
            keep = not held and any(state.phase == "queued" for state in states.values())
            for decision in decisions:
                _carry_out(decision, fleet, sightings.get(decision.run_id), before_release, on_event, outcomes, keep)
                states[decision.run_id] = advance(states[decision.run_id], decision)
            left -= len(outcomes)
            yield from outcomes
            if not left:
                return
            lane.tell(waiting=any(state.phase in ("queued", "starting") for state in states.values()))
            if decisions:
                changed_s = clock()
            sightings = fleet.poll(TICK_S)
            on_tick()
    finally:
        for state in states.values():
            if state.active:
                fleet.stop(state.run_id)
        fleet.close()
        lane.leave()


def _carry_out(
    decision: Decision,
    fleet: Fleet,
    sighting: Sighting | None,
    before_release: BeforeRelease,
    on_event: OnEvent,
    outcomes: list[Outcome],
    keep: bool,
) -> None:
    """Do what was decided; where that ends the job, its outcome joins `outcomes`."""
    run_id, place = decision.run_id, fleet.place(decision.run_id)
    error = fleet.shortage() if decision.unscheduled else sighting.error if sighting else None
    if decision.action == "start":
        fleet.start(run_id)
    elif decision.action == "run":
        fleet.run(run_id)
    elif decision.action == "collect":
        on_event(RunEvent("finished", run_id, place))
        before_release(run_id)
        fleet.collect(run_id)
    elif decision.action == "finish":
        fleet.free(run_id, keep=keep)
        outcomes.append(Outcome(run_id, value=sighting.value if sighting else None))
    else:
        fleet.stop(run_id)
        told: What = "retried" if decision.action == "retry" else "failed"
        on_event(RunEvent(told, run_id, place, type(error).__name__ if error else None))
        if decision.action == "fail":
            outcomes.append(Outcome(run_id, error=error, released=decision.released))
        return
    on_event(RunEvent(_TOLD[decision.action], run_id, place))
