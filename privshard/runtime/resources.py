"""How much of a cluster one shard gets, decided without a cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from privshard.core.errors import InputError, ResourceError

_GRAIN = 10_000  # Ray counts resources in ten-thousandths


@dataclass(frozen=True)
class NodeView:
    """What one machine has in all, used or not."""

    gpus: float
    cpus: float


@dataclass(frozen=True)
class ClusterView:
    """The machines of a cluster; one shard must fit on one of them."""

    nodes: tuple[NodeView, ...]

    @property
    def gpus(self) -> float:
        """GPUs of all machines."""
        return sum(node.gpus for node in self.nodes)

    @property
    def cpus(self) -> float:
        """CPUs of all machines."""
        return sum(node.cpus for node in self.nodes)

    def __str__(self) -> str:
        machines = ", ".join(f"{_amount(node.gpus, 'GPU')} and {_amount(node.cpus, 'CPU')}" for node in self.nodes)
        return f"{len(self.nodes)} machine{'' if len(self.nodes) == 1 else 's'} ({machines or 'none'})"


@dataclass(frozen=True)
class Placement:
    """What each worker asks for, and how many workers there may be at once."""

    gpus: float
    cpus: float
    concurrent: int

    def __str__(self) -> str:
        return f"{_amount(self.gpus, 'GPU')} and {_amount(self.cpus, 'CPU')}"


def placement(
    view: ClusterView,
    *,
    gpus_per_shard: Literal["auto"] | float = "auto",
    cpus_per_shard: float = 1.0,
    num_jobs: int,
    min_gpu_share: float = 0.25,
) -> Placement:
    """Decide each worker's resources and how many run at once; what never fits is refused.

    "auto" takes no GPU where there is none, one GPU a shard where they suffice, and otherwise the share
    1/ceil(jobs/GPUs) that runs all shards at once, but at least `min_gpu_share`, since sharing a GPU is sharing its
    memory. Shares of a GPU never span two GPUs. Looks at what the cluster has, not at what is free right now.

    >>> two_gpus = ClusterView((NodeView(gpus=2, cpus=16),))
    >>> placement(two_gpus, num_jobs=4)
    Placement(gpus=0.5, cpus=1.0, concurrent=4)

    Raises InputError for impossible numbers, ResourceError where no machine can hold one shard.
    """
    if num_jobs < 1:
        raise InputError(f"placement: expected at least one job, got {num_jobs}.")
    if not cpus_per_shard > 0 or not math.isfinite(cpus_per_shard):
        raise InputError(f"ray.cpus_per_shard: expected a positive number, got {cpus_per_shard}.")
    gpus = _auto_gpus(view, num_jobs, min_gpu_share) if gpus_per_shard == "auto" else _checked_gpus(gpus_per_shard)
    slots = sum(_slots(node, gpus, cpus_per_shard) for node in view.nodes)
    asked = Placement(gpus, float(cpus_per_shard), min(slots, num_jobs))
    if slots == 0:
        raise ResourceError(
            f"One shard asks for {asked}; no machine of this cluster has that: it has {view}.",
            remedy=_remedy(view, gpus),
        )
    return asked


def _auto_gpus(view: ClusterView, num_jobs: int, min_gpu_share: float) -> float:
    """The "auto" rule for GPUs, rounded down to Ray's grain so that the shares fit."""
    whole = sum(int(node.gpus) for node in view.nodes)
    if whole == 0:
        return 0.0
    share = max(1 / math.ceil(num_jobs / whole), min_gpu_share)
    return math.floor(share * _GRAIN) / _GRAIN


def _checked_gpus(gpus: float) -> float:
    """A GPU request that Ray accepts: 0, a share of one GPU, or a whole number of them."""
    if not math.isfinite(gpus) or gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise InputError(f"ray.gpus_per_shard: expected 'auto', 0, a share up to 1 or a whole number, got {gpus}.")
    return float(gpus)


def _slots(node: NodeView, gpus: float, cpus: float) -> int:
    """How many workers one machine holds at once."""
    by_cpu = _grains(node.cpus) // max(1, _grains(cpus))
    if gpus == 0:
        return by_cpu
    if gpus < 1:
        return min(by_cpu, int(node.gpus) * (_GRAIN // max(1, _grains(gpus))))
    return min(by_cpu, int(node.gpus // gpus))


def _grains(amount: float) -> int:
    return round(amount * _GRAIN)


def _amount(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _remedy(view: ClusterView, gpus: float) -> str:
    if gpus > max((node.gpus for node in view.nodes), default=0):
        return "Lower ray.gpus_per_shard (0 trains on CPUs), or name a cluster with GPUs in ray.address."
    return "Lower ray.cpus_per_shard, or name a larger cluster in ray.address."
