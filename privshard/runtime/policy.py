"""What to do next with a set of jobs: pure decisions from what is believed and what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Phase = Literal["queued", "starting", "running", "collecting", "done", "failed"]
Seen = Literal["starting", "ready", "running", "finished", "collecting", "returned", "raised", "died", "lost"]
Action = Literal["start", "run", "collect", "finish", "retry", "fail"]

_NEXT_PHASE: Mapping[Action, Phase] = {
    "start": "starting",
    "run": "running",
    "collect": "collecting",
    "finish": "done",
    "retry": "queued",
    "fail": "failed",
}


@dataclass(frozen=True)
class JobState:
    """What the controller believes about one job; `workers` counts the workers it was ever given."""

    run_id: str
    phase: Phase = "queued"
    workers: int = 0

    @property
    def active(self) -> bool:
        """Whether a worker exists for it now."""
        return self.phase in ("starting", "running", "collecting")

    @property
    def over(self) -> bool:
        """Whether its outcome is known."""
        return self.phase in ("done", "failed")


@dataclass(frozen=True)
class Limits:
    """Public bounds: workers at once, fresh workers for one job after deaths, seconds to wait for a first worker, and
    seconds to wait for one while other trainings of privshard, which will make room, hold the cluster."""

    concurrent: int
    max_retries: int = 3
    schedule_timeout_s: float = 30.0
    queue_timeout_s: float = 3600.0


@dataclass(frozen=True)
class Decision:
    """One step for one job. `released`: whether anything noisy may have left the worker of a failed job."""

    action: Action
    run_id: str
    released: bool = False
    unscheduled: bool = False


def decide(
    states: Sequence[JobState],
    seen: Mapping[str, Seen],
    limits: Limits,
    *,
    quiet_s: float,
    held: bool = False,
    room_to_come: bool = False,
) -> list[Decision]:
    """The next steps, in order.

    seen: what each active job's worker was last seen doing:
        starting    not there yet            ready      there, waiting to be told to run
        running     at work                  finished   done; its result is still in the worker
        collecting  asked for its result     returned   its result is here
        raised      its function raised      died       gone, or stalled and to be killed
        lost        gone or unreadable after it was asked for its result
    quiet_s: seconds since anything last changed. held: removals wait for room on the cluster, and go first.
    room_to_come: other trainings hold the cluster and will make room.

    Guarantees:
    - A result leaves a worker only when it is asked for, after "collect". Whatever becomes of a worker before that, it
      let nothing noisy out: its job is retried up to `max_retries` times (the same job: same run id, same attempt,
      same reservation), then fails with released=False. Afterwards a job that fails counts as released, and is never
      retried.
    - What the function raises is not retried: it would be raised again.
    - No more than `concurrent` workers at once, and none is started while `held`.
    - No waiting for nothing: when no job of ours runs and none of the workers that were asked for has come within
      `schedule_timeout_s` (`queue_timeout_s` where there is room to come), those jobs and all that queue behind them
      fail. While a job of ours runs, waiting workers are a queue and wait on.
    """
    active = [state for state in states if state.active]
    decisions = [step for state in active if (step := _step(state, seen[state.run_id], limits))]
    patience_s = limits.queue_timeout_s if room_to_come else limits.schedule_timeout_s
    if not decisions and quiet_s > patience_s and active and all(state.phase == "starting" for state in active):
        return [Decision("fail", state.run_id, unscheduled=True) for state in states if not state.over]
    if held:
        return decisions
    ended = {step.run_id for step in decisions if step.action in ("finish", "retry", "fail")}
    free = limits.concurrent - sum(state.run_id not in ended for state in active)
    queued = [state.run_id for state in states if state.phase == "queued"] if free > 0 else []
    return decisions + [Decision("start", run_id) for run_id in queued[:free]]


def advance(state: JobState, decision: Decision) -> JobState:
    """The state of a job after a decision about it was carried out."""
    started = decision.action == "start"
    return replace(state, phase=_NEXT_PHASE[decision.action], workers=state.workers + started)


def _step(state: JobState, seen: Seen, limits: Limits) -> Decision | None:
    """The step that one active job needs, if any."""
    run_id, asked = state.run_id, state.phase == "collecting"
    if seen == "ready" and state.phase == "starting":
        return Decision("run", run_id)
    if seen == "finished" and state.phase == "running":
        return Decision("collect", run_id)
    if seen == "returned":
        return Decision("finish", run_id)
    if seen in ("died", "lost") and not asked and state.workers <= limits.max_retries:
        return Decision("retry", run_id)
    if seen in ("raised", "died", "lost"):
        return Decision("fail", run_id, released=asked)
    return None
