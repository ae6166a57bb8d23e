"""The one function that both executors run, and how they call it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from privshard.core.jobs import OnProgress, ShardJob, ShardResult

BaseState = Mapping[str, np.ndarray]
ShardFunction = Callable[[ShardJob, BaseState | None, OnProgress], ShardResult]


def run_shard(run: ShardFunction, job: ShardJob, base_state: BaseState | None, on_progress: OnProgress) -> ShardResult:
    """`run(job, base_state, on_progress)` with the job's thread count and a base that cannot be written to.

    Guarantee: whoever calls this sets the same conditions, so seeded results do not depend on the executor.
    """
    with torch_threads(job.flags.threads):
        return run(job, frozen(base_state), on_progress)


def frozen(base_state: BaseState | None) -> BaseState | None:
    """Read-only views of the base's arrays (no copy): what Ray's object store hands out, also without Ray."""
    if base_state is None:
        return None
    views = {name: array.view() for name, array in base_state.items()}
    for view in views.values():
        view.flags.writeable = False
    return views


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Give torch this many CPU threads, then as many as before. None leaves them alone.

    A torch that is not imported yet takes as many as OMP_NUM_THREADS says; where that is the number, it is not imported
    for this.
    """
    by_itself = "torch" not in sys.modules and os.environ.get("OMP_NUM_THREADS") == str(threads)
    if threads is None or by_itself:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
