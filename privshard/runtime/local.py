"""Runs shard jobs one after another in this process."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from privshard.core.jobs import BeforeRelease, OnProgress, ShardFailure, ShardJob, ShardResult
from privshard.runtime.events import OnEvent, RunEvent, WorkerPlace, unwatched
from privshard.runtime.news import NEWS_INTERVAL_S, safely
from privshard.runtime.shard_function import BaseState, ShardFunction, run_shard, torch_threads

T = TypeVar("T")


class LocalExecutor:
    """A `ShardTrainer` without Ray: the reference that the Ray executor must match bit for bit.

    run: the shard function. base_state: the frozen base's weights, handed to every job read-only.
    """

    def __init__(
        self,
        run: ShardFunction,
        *,
        base_state: BaseState | None = None,
    ) -> None:
        self._run = run
        self._base_state = base_state
        self._on_event: OnEvent = unwatched
        self._on_tick: Callable[[], None] = lambda: None

    def train(
        self, jobs: Sequence[ShardJob], on_progress: OnProgress, *, before_release: BeforeRelease = lambda _: None
    ) -> Iterator[ShardResult | ShardFailure]:
        """Run all jobs in order, yielding each outcome before the next job starts.

        A job that raises ends as a `ShardFailure` with that error and released=False (its result did not leave the
        shard function); the other jobs still run. Torch's thread count is the job's during a job and restored after.
        """
        tell = safely(on_progress, interval_s=NEWS_INTERVAL_S)
        here = WorkerPlace(platform.node(), os.getpid())
        for job in jobs:
            self._on_event(RunEvent("queued", job.run_id))
        for job in jobs:
            self._on_tick()
            self._on_event(RunEvent("running", job.run_id, here))
            try:
                outcome = run_shard(self._run, job, self._base_state, tell)
            except Exception as error:
                self._on_event(RunEvent("failed", job.run_id, here, type(error).__name__))
                yield ShardFailure(job.run_id, job.shard, error, released=False)
                continue
            self._on_event(RunEvent("finished", job.run_id, here))
            before_release(job.run_id)
            self._on_event(RunEvent("done", job.run_id, here))
            yield outcome

    def watched_by(self, *, on_event: OnEvent, on_tick: Callable[[], None]) -> None:
        """From now on `on_event` hears of every step of every job; `on_tick` is called before each of them, and may end
        them by raising."""
        self._on_event, self._on_tick = on_event, on_tick

    def check(self, num_jobs: int) -> None:
        """Nothing can be missing: jobs run one after another, here."""

    def call(self, function: Callable[..., T], *args: Any, threads: int | None = None) -> T:
        """`function(*args)`, here; its errors are raised as they are."""
        with torch_threads(threads):
            return function(*args)

    def close(self) -> None:
        """Nothing to release."""

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
