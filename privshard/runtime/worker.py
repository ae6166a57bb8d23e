"""What a worker process does: one shard at a time, behind a handshake. Knows nothing of Ray, so it runs anywhere."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import privshard
from privshard.core.errors import ResourceError
from privshard.core.jobs import Progress, ShardJob
from privshard.runtime.events import WorkerPlace
from privshard.runtime.news import NewsBox, safely
from privshard.runtime.shard_function import BaseState, ShardFunction, run_shard, torch_threads
from privshard.store.secrets import KEYS_ENV
from privshard.store.server import LEDGER_ENV


@dataclass(frozen=True)
class Handshake:
    """What a worker must match before it gets work. workspace: a path that it must see, or None."""

    versions: Mapping[str, str]
    workspace: str | None
    threads: int | None
    gpus: float


class ShardWorker:
    """One worker: one piece of work at a time, and the next one after another handshake.

    A result stays inside until it is asked for with `take`: whatever becomes of a worker before that, nothing of its
    work has left it. Its constructor takes nothing: jobs and the base's weights come as arguments of a method call, so
    that Ray keeps one copy of the weights on each machine and none in the record from which it creates actors.
    """

    def __init__(self) -> None:
        self._news = NewsBox()
        self._result: Any = None

    def prepare(self, handshake: Handshake) -> WorkerPlace:
        """Check that this process can do the work, set what must be set before torch is imported, and say where it is.

        A worker without a GPU of its own sees none: Ray hides GPUs only from those who own others. A worker with a
        share of a GPU may fill that share of its memory and no more, so that its neighbours keep theirs.
        The keys and the ledger's address, password included, are the controller's: a worker's environment may have
        inherited them from its machine's, and loses them here.
        Raises ResourceError for other software versions than the driver's or a workspace that is not here.
        """
        self._result = None
        for name in (KEYS_ENV, LEDGER_ENV):
            os.environ.pop(name, None)
        _check_versions(handshake.versions)
        _check_workspace(handshake.workspace)
        if handshake.threads is not None:
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(handshake.threads)
        if handshake.gpus == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        gpus = tuple(name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name)
        share = _cap_gpu_memory(handshake.gpus)
        return WorkerPlace(platform.node(), os.getpid(), gpus, share)

    def train(self, run: ShardFunction, job: ShardJob, base_state: BaseState | None) -> Sequence[Progress]:
        """Run the job and keep its result; the progress that nobody has asked for yet."""
        self._result = run_shard(run, job, base_state, safely(self._news.put))
        return self._news.take()

    def call(self, function: Callable[..., Any], threads: int | None, *args: Any) -> Sequence[Progress]:
        """Run `function(*args)` and keep its result; no progress."""
        with torch_threads(threads):
            self._result = function(*args)
        return ()

    def take(self) -> Any:
        """The result of the last work, once."""
        result, self._result = self._result, None
        return result

    def news(self) -> Sequence[Progress]:
        """Progress since the last call; answered while `train` is at work."""
        return self._news.take()


def software_versions() -> dict[str, str]:
    """Versions that driver and workers must share: of what is pickled between them, and of what computes."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {
        "privshard": privshard.__version__,
        "python": python,
        "numpy": _version("numpy"),
        "torch": _version("torch"),
    }


def _cap_gpu_memory(gpus: float) -> float:
    """Let this process fill no more than its share of one GPU's memory; the share, 0 where there is nothing to cap."""
    if not 0 < gpus < 1:
        return 0.0
    import torch

    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.set_per_process_memory_fraction(gpus)
    return gpus


def _check_versions(expected: Mapping[str, str]) -> None:
    here = software_versions()
    wrong = [
        f"{name} {here.get(name, 'missing')} instead of {expected[name]}"
        for name in expected
        if here.get(name) != expected[name]
    ]
    if wrong:
        raise ResourceError(
            f"The worker on {platform.node()} runs other software than the driver: {', '.join(wrong)}.",
            remedy="Install the same versions on every machine of the cluster.",
        )


def _check_workspace(workspace: str | None) -> None:
    if workspace is None or "://" in workspace or Path(workspace).is_dir():
        return
    raise ResourceError(
        f"The worker on {platform.node()} cannot see the workspace {workspace}.",
        remedy="Put the workspace on storage that every machine mounts under the same path, or on an object store.",
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
