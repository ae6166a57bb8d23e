"""What has happened in one run so far: the jobs, their stages and where they ran. It outlives the workers."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from privshard.core.jobs import Progress
from privshard.runtime.events import RunEvent, WorkerPlace

State = Literal["running", "done", "failed", "cancelled"]
_OVER = ("done", "failed")


@dataclass
class _Job:
    """One job; spans are (what, begin, end), the last one open while the job is not over."""

    state: str = "queued"
    stage: str | None = None
    done: int = 0
    total: int = 0
    place: WorkerPlace | None = None
    retries: int = 0
    error: str | None = None
    spans: list[list[Any]] = field(default_factory=list)


class RunRecord:
    """Takes the events and the progress of one run from any thread, and gives them as plain JSON values.

    What it holds about a job takes constant memory. Times tell about the size of a shard: a record is confidential,
    stays in the workspace and is erased with the first subject that is removed.
    """

    def __init__(self, *, kind: str) -> None:
        self.kind = kind
        self.started_s = time.time()
        self.steps_done = 0
        self._jobs: dict[str, _Job] = {}
        self._stages: dict[str, list[float]] = {}
        self._now: Progress | None = None
        self._state: State = "running"
        self._error: dict[str, str] | None = None
        self._ended_s: float | None = None
        self._lock = threading.Lock()

    def on_event(self, event: RunEvent) -> None:
        """Take one step of one job."""
        with self._lock:
            job = self._jobs.setdefault(event.run_id, _Job())
            job.state = "queued" if event.what == "retried" else event.what
            job.place = event.place or job.place
            job.retries += event.what == "retried"
            job.error = event.error or job.error
            if job.spans and job.spans[-1][2] is None:
                job.spans[-1][2] = event.at_s
            if event.what not in _OVER:
                job.spans.append([job.state, event.at_s, None])

    def on_progress(self, progress: Progress) -> None:
        """Take one piece of news."""
        with self._lock:
            now = time.time()
            job = self._jobs.get(progress.run_id)
            if job is None:
                self._now = progress
                stage = self._stages.setdefault(progress.stage, [now, now])
                stage[1] = now
                return
            same = job.stage == progress.stage
            if progress.stage == "train":
                self.steps_done += max(0, progress.done - (job.done if same else 0))
            job.stage, job.done, job.total = progress.stage, progress.done, progress.total

    def end(self, state: State, error: BaseException | None = None) -> None:
        """The run is over, and everything that belongs to it is done."""
        with self._lock:
            self._state, self._ended_s = state, time.time()
            self._error = _in_words(error)

    def ended(self, state: State, error: BaseException | None = None) -> dict[str, Any]:
        """What `snapshot` would give if the run were over now: to be kept before those who wait hear of its end."""
        return {**self.snapshot(), "state": state, "error": _in_words(error), "ended_s": time.time()}

    @property
    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._lock:
            return dict(Counter(job.state for job in self._jobs.values()))

    def snapshot(self) -> dict[str, Any]:
        """Everything, as JSON values; times are seconds since 1970."""
        with self._lock:
            now = self._now
            return {
                "kind": self.kind,
                "state": self._state,
                "error": self._error,
                "started_s": self.started_s,
                "updated_s": time.time(),
                "ended_s": self._ended_s,
                "stage": {"name": now.stage, "done": now.done, "total": now.total} if now else None,
                "stages": [[name, begin, end] for name, (begin, end) in self._stages.items()],
                "jobs": [
                    {
                        "run_id": run_id,
                        "state": job.state,
                        "stage": job.stage,
                        "done": job.done,
                        "total": job.total,
                        "node": job.place.node if job.place else None,
                        "pid": job.place.pid if job.place else None,
                        "gpus": list(job.place.gpus) if job.place else [],
                        "gpu_share": job.place.gpu_share if job.place else 0.0,
                        "retries": job.retries,
                        "error": job.error,
                        "spans": [list(span) for span in job.spans],
                    }
                    for run_id, job in self._jobs.items()
                ],
            }


def _in_words(error: BaseException | None) -> dict[str, str] | None:
    """An error as the contract's JSON has it."""
    if error is None:
        return None
    return {
        "kind": getattr(error, "kind", "internal"),
        "message": getattr(error, "message", str(error)),
        "remedy": getattr(error, "remedy", ""),
    }
