"""What to do next with a set of jobs: pure decisions from what is believed and what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Phase = Literal["queued", "starting", "running", "done", "failed"]
Seen = Literal["starting", "ready", "running", "returned", "raised", "died", "lost"]
Action = Literal["start", "run", "finish", "retry", "fail"]

_NEXT_PHASE: Mapping[Action, Phase] = {
    "start": "starting",
    "run": "running",
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
        return self.phase in ("starting", "running")

    @property
    def over(self) -> bool:
        """Whether its outcome is known."""
        return self.phase in ("done", "failed")


@dataclass(frozen=True)
class Limits:
    """Public bounds: workers at once, fresh workers for one job after deaths, seconds to wait for a first worker."""

    concurrent: int
    max_retries: int = 1
    schedule_timeout_s: float = 30.0


@dataclass(frozen=True)
class Decision:
    """One step for one job. `released`: whether anything noisy may have left the worker of a failed job."""

    action: Action
    run_id: str
    released: bool = False
    unscheduled: bool = False


def decide(states: Sequence[JobState], seen: Mapping[str, Seen], limits: Limits, *, quiet_s: float) -> list[Decision]:
    """The next steps, in order.

    seen: what each active job's worker was last seen doing:
        starting  not there yet              ready     there, waiting to be told to run
        running   at work                    returned  its result is here
        raised    its function raised        died      gone before it returned
        lost      gone or unreadable after it may have returned
    quiet_s: seconds since anything last changed.

    Guarantees:
    - A worker that died before it returned let nothing noisy out: results leave a worker only by being returned. Its
      job is retried up to `max_retries` times (the same job: same run id, same attempt, same reservation), then fails
      with released=False. A result that may have been returned and cannot be read counts as released, never retried.
    - What the function raises is not retried: it would be raised again.
    - No more than `concurrent` workers at once.
    - No waiting for nothing: when no job of ours runs and none of the workers that were asked for has come within
      `schedule_timeout_s`, those jobs and all that queue behind them fail. While a job of ours runs, waiting workers
      are a queue and wait on.
    """
    decisions = [step for state in states if state.active and (step := _step(state, seen[state.run_id], limits))]
    if not decisions and _starved(states, limits, quiet_s):
        return [Decision("fail", state.run_id, unscheduled=True) for state in states if not state.over]
    ended = {step.run_id for step in decisions if step.action != "run"}
    free = limits.concurrent - sum(state.active and state.run_id not in ended for state in states)
    queued = [state.run_id for state in states if state.phase == "queued"]
    return decisions + [Decision("start", run_id) for run_id in queued[: max(0, free)]]


def advance(state: JobState, decision: Decision) -> JobState:
    """The state of a job after a decision about it was carried out."""
    started = decision.action == "start"
    return replace(state, phase=_NEXT_PHASE[decision.action], workers=state.workers + started)


def _step(state: JobState, seen: Seen, limits: Limits) -> Decision | None:
    """The step that one active job needs, if any."""
    run_id = state.run_id
    if seen == "ready" and state.phase == "starting":
        return Decision("run", run_id)
    if seen == "returned":
        return Decision("finish", run_id)
    if seen == "died" and state.workers <= limits.max_retries:
        return Decision("retry", run_id)
    if seen in ("raised", "died"):
        return Decision("fail", run_id)
    if seen == "lost":
        return Decision("fail", run_id, released=True)
    return None


def _starved(states: Sequence[JobState], limits: Limits, quiet_s: float) -> bool:
    """Whether we wait for workers and nothing of ours could ever make room for them."""
    phases = {state.phase for state in states}
    return "starting" in phases and "running" not in phases and quiet_s > limits.schedule_timeout_s
