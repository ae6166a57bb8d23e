"""What a worker process does: one shard, behind a handshake. Knows nothing of Ray, so it runs anywhere."""

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
from privshard.core.jobs import Progress, ShardJob, ShardResult
from privshard.runtime.news import NewsBox, safely
from privshard.runtime.shard_function import BaseState, ShardFunction, run_shard, torch_threads


@dataclass(frozen=True)
class Handshake:
    """What a worker must match before it gets work. workspace: a path that it must see, or None."""

    versions: Mapping[str, str]
    workspace: str | None
    threads: int | None
    gpus: float


class ShardWorker:
    """One worker, which lives for one piece of work.

    Its constructor takes nothing: jobs and the base's weights come as arguments of a method call, so that Ray keeps
    one copy of the weights on each machine and none in the record from which it creates actors.
    """

    def __init__(self) -> None:
        self._news = NewsBox()

    def prepare(self, handshake: Handshake) -> None:
        """Check that this process can do the work, and set what must be set before torch is imported.

        A worker without a GPU of its own sees none: Ray hides GPUs only from those who own others.
        Raises ResourceError for other software versions than the driver's or a workspace that is not here.
        """
        _check_versions(handshake.versions)
        _check_workspace(handshake.workspace)
        if handshake.threads is not None:
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(handshake.threads)
        if handshake.gpus == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def train(self, run: ShardFunction, job: ShardJob, base_state: BaseState | None) -> tuple[ShardResult, Any]:
        """The shard's result, and the progress nobody has asked for yet."""
        result = run_shard(run, job, base_state, safely(self._news.put))
        return result, self._news.take()

    def call(self, function: Callable[..., Any], threads: int | None, *args: Any) -> tuple[Any, Any]:
        """`function(*args)`, and no progress."""
        with torch_threads(threads):
            return function(*args), ()

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
