"""Runs shard jobs on Ray: one actor a shard at a time, results bit-identical to the local executor's."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakSet

from privshard.core.errors import InputError, ResourceError
from privshard.core.jobs import BeforeRelease, OnProgress, ShardFailure, ShardJob, ShardResult
from privshard.runtime.cluster import cluster_view, connect, disconnect
from privshard.runtime.controller import Lane, NoLane, Outcome, supervise
from privshard.runtime.events import OnEvent, unwatched
from privshard.runtime.lane import RayLane
from privshard.runtime.news import safely
from privshard.runtime.policy import Limits
from privshard.runtime.ray_fleet import RayFleet, Task
from privshard.runtime.resources import Placement, placement
from privshard.runtime.shard_function import BaseState, ShardFunction
from privshard.runtime.worker import Handshake, software_versions

T = TypeVar("T")


class RayExecutor:
    """A `ShardTrainer` on Ray. Connects at first use; `close()`, or leaving it as a context, undoes only what it did.

    run: the shard function; it must be importable on the workers. base_state: the frozen base's weights, put into
    Ray's object store once and shared read-only by the workers of a machine. address: "local", "auto", "host:port".
    gpus_per_shard, cpus_per_shard: as in `placement`. schedule_timeout_s: how long to wait for the cluster to answer,
    and for a worker when nothing of ours runs; queue_timeout_s: the same while another training of privshard holds the
    cluster. stall_timeout_s: a worker that reports no progress for so long is taken for dead. max_retries: fresh
    workers for a job whose worker died. urgent: these jobs go before what other trainings have queued.
    """

    def __init__(
        self,
        run: ShardFunction,
        *,
        base_state: BaseState | None = None,
        address: str = "local",
        gpus_per_shard: Literal["auto"] | float = "auto",
        cpus_per_shard: float = 1.0,
        schedule_timeout_s: float = 30.0,
        queue_timeout_s: float = 3600.0,
        stall_timeout_s: float = 1800.0,
        max_retries: int = 3,
        urgent: bool = False,
    ) -> None:
        self._run = run
        self._base_state = base_state
        self._address = address
        self._gpus_per_shard: Literal["auto"] | float = gpus_per_shard
        self._cpus_per_shard = cpus_per_shard
        self._schedule_timeout_s = schedule_timeout_s
        self._queue_timeout_s = queue_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._max_retries = max_retries
        self._urgent = urgent
        self._on_event: OnEvent = unwatched
        self._on_tick: Callable[[], None] = lambda: None
        self._lane: Lane | None = None
        self._base_ref: Any = None
        self._connected_here = False
        self._open: WeakSet[Generator[Outcome, None, None]] = WeakSet()

    def train(
        self, jobs: Sequence[ShardJob], on_progress: OnProgress, *, before_release: BeforeRelease = lambda _: None
    ) -> Iterator[ShardResult | ShardFailure]:
        """Run all jobs, at most as many at once as the cluster holds, yielding each outcome as it comes.

        Raises ResourceError before any job starts if the cluster cannot be reached or can never hold one shard, and
        InputError for two jobs with one run id. What happens to a job afterwards is a `ShardFailure` of that job: the
        error its function raised (its own class), or ResourceError for a worker that never came, kept dying, runs
        other software or does not see the workspace. Abandoning the iterator kills the workers.
        """
        jobs = [_with_absolute_workspace(job) for job in jobs]
        if not jobs:
            return iter(())
        if len({job.run_id for job in jobs}) != len(jobs):
            raise InputError(f"Run ids must differ, got {sorted(job.run_id for job in jobs)}.")
        place = self._place(len(jobs))
        versions, base = software_versions(), self._base()
        tasks = {
            job.run_id: Task(
                Handshake(versions, job.workspace, job.flags.threads, place.gpus), "train", (self._run, job, base)
            )
            for job in jobs
        }
        by_run = {job.run_id: job for job in jobs}
        return self._outcomes(by_run, self._supervise(tasks, place, on_progress, before_release))

    def watched_by(self, *, on_event: OnEvent, on_tick: Callable[[], None]) -> None:
        """From now on `on_event` hears of every step of every job, and `on_tick` is called several times a second while
        jobs run; it may end them by raising."""
        self._on_event, self._on_tick = on_event, on_tick

    def check(self, num_jobs: int) -> None:
        """Raise ResourceError, as `train` would, if the cluster can't be reached or can never hold one shard."""
        self._place(num_jobs)

    def call(self, function: Callable[..., T], *args: Any, threads: int | None = None) -> T:
        """`function(*args)` on one worker with the resources of a shard; its errors are raised as they are.

        The executor's own base_state among `args` is not sent again. Raises ResourceError like `train`.
        """
        place = self._place(1)
        sent = tuple(self._base() if arg is self._base_state else arg for arg in args)
        task = Task(Handshake(software_versions(), None, threads, place.gpus), "call", (function, threads, *sent))
        outcome = next(self._supervise({"call": task}, place, lambda _: None, lambda _: None))
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def close(self) -> None:
        """End what still runs, forget the base's weights in the object store, and leave Ray if we initialized it."""
        for run in tuple(self._open):
            run.close()
        self._base_ref = self._lane = None
        if self._connected_here:
            disconnect()
            self._connected_here = False

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place(self, num_jobs: int) -> Placement:
        """Connect, and decide what each worker gets."""
        self._connected_here |= connect(self._address, timeout_s=self._schedule_timeout_s)
        return placement(
            cluster_view(),
            gpus_per_shard=self._gpus_per_shard,
            cpus_per_shard=self._cpus_per_shard,
            num_jobs=num_jobs,
        )

    def _base(self) -> Any:
        """The ref of the base's weights, put once."""
        if self._base_state is not None and self._base_ref is None:
            import ray
            from ray.exceptions import ObjectStoreFullError

            try:
                self._base_ref = ray.put(dict(self._base_state))
            except ObjectStoreFullError as error:
                raise ResourceError(
                    "The base's weights do not fit into Ray's object store.",
                    remedy="Start Ray with a larger object_store_memory.",
                ) from error
        return self._base_ref

    def _supervise(
        self, tasks: Mapping[str, Task], place: Placement, on_progress: OnProgress, before_release: BeforeRelease
    ) -> Iterator[Outcome]:
        """The outcomes of tasks under this executor's limits."""
        fleet = RayFleet(tasks, placement=place, on_progress=safely(on_progress), stall_timeout_s=self._stall_timeout_s)
        limits = Limits(place.concurrent, self._max_retries, self._schedule_timeout_s, self._queue_timeout_s)
        if self._lane is None:  # a Ray of our own has no other users
            alone = self._connected_here and self._address == "local"
            self._lane = NoLane() if alone else RayLane(urgent=self._urgent)
        run = supervise(
            list(tasks),
            fleet,
            limits=limits,
            before_release=before_release,
            on_event=self._on_event,
            on_tick=self._on_tick,
            lane=self._lane,
        )
        self._open.add(run)
        return run

    @staticmethod
    def _outcomes(jobs: Mapping[str, ShardJob], run: Iterator[Outcome]) -> Iterator[ShardResult | ShardFailure]:
        """Outcomes in the words of `ShardTrainer`."""
        for outcome in run:
            if outcome.error is None:
                yield outcome.value
            else:
                yield ShardFailure(outcome.run_id, jobs[outcome.run_id].shard, outcome.error, outcome.released)


def _with_absolute_workspace(job: ShardJob) -> ShardJob:
    """The job with a workspace path that does not depend on the driver's current directory."""
    return job if "://" in job.workspace else replace(job, workspace=str(Path(job.workspace).absolute()))
