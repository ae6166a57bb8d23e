"""What happens to jobs, as it happens: told to whoever watches a run (timeline, metrics, logs)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

What = Literal["queued", "starting", "running", "finished", "collecting", "done", "retried", "failed"]


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker is: its machine, its process, the GPUs that it sees, and the share of one that it may fill."""

    node: str
    pid: int
    gpus: tuple[str, ...] = ()
    gpu_share: float = 0.0

    def __str__(self) -> str:
        return f"{self.node}/{self.pid}"


@dataclass(frozen=True)
class RunEvent:
    """One change in the life of one job. `error` is a class name, never a message: messages may name files."""

    what: What
    run_id: str
    place: WorkerPlace | None = None
    error: str | None = None
    at_s: float = field(default_factory=time.time)


OnEvent = Callable[[RunEvent], None]


def unwatched(event: RunEvent) -> None:
    """Nobody watches."""
