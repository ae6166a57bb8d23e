"""A shard function without a model: real rows in, seeded tensors of the right shapes out, at a chosen pace.

It lets programs measure what surrounds a shard (actors, ledger, files) without the seconds that importing and running
a model takes on a small machine. Its components say nothing about anybody and are marked as not private.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from privshard.core.jobs import OnProgress, Progress, ShardJob, ShardResult

Shapes = Mapping[str, tuple[int, ...]]


def train_stand_in(
    shapes: Shapes, work_s: float, job: ShardJob, base_state: Mapping[str, np.ndarray] | None, on_progress: OnProgress
) -> ShardResult:
    """Tensors that are a function of (seed, shard, attempt), after `work_s` seconds of steps."""
    from privshard.data.shards import read_partition
    from privshard.store.layout import shard_dir
    from privshard.store.objects import ObjectStore

    rows = read_partition(ObjectStore(job.workspace), shard_dir(job.shard))
    for step in range(1, job.plan.steps + 1):
        time.sleep(work_s / job.plan.steps)
        on_progress(Progress(job.run_id, job.shard, "train", step, job.plan.steps))
    return make_result(shapes, job, example_ids=rows.ids, num_units=len(rows.ids), train_s=work_s)


def make_result(
    shapes: Shapes, job: ShardJob, *, example_ids: tuple[str, ...] = (), num_units: int = 0, train_s: float = 0.0
) -> ShardResult:
    """The result of a job that nobody trained."""
    digest = hashlib.sha256(f"{job.insecure_seed}/{job.shard}/{job.attempt}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    tensors = {name: generator.normal(0, 1e-3, shape).astype(np.float32) for name, shape in sorted(shapes.items())}
    timing = {"encode": 0.0, "train": train_s}
    return ShardResult(job.run_id, job.shard, job.attempt, tensors, "tangent", example_ids, num_units, timing)


@contextmanager
def standing_in(shapes: Shapes, *, work_s: float) -> Iterator[None]:
    """Let trainings in this process use the stand-in: for seeded recipes, which are marked as not private."""
    from privshard.api import worker

    real = worker.run_job
    worker.run_job = functools.partial(train_stand_in, dict(shapes), work_s)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        worker.run_job = real
