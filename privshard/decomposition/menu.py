"""The size menu: which recomposed models fit a device, and which of them are worth their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from privshard.core.errors import InputError

Cost = Literal["parameters", "latency_ms", "memory_bytes"]


@dataclass(frozen=True)
class Budget:
    """What a device has; None is no limit. latency_ms: of one image. memory_bytes: weights and activations."""

    parameters: int | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and not limit > 0:
                raise InputError(f"budget: expected {name} above 0, got {limit}.", remedy="Leave it out for no limit.")

    def holds(self, size: Size) -> bool:
        """Whether a model fits."""
        limits = ((limit, getattr(size, name)) for name, limit in vars(self).items())
        return all(limit is None or value <= limit for limit, value in limits)


@dataclass(frozen=True)
class Size:
    """One recomposed model: what it costs here and how good it is. stored: numbers of its tied file."""

    depths: tuple[int, ...]
    components: int
    parameters: int
    stored: int
    latency_ms: float
    memory_bytes: int
    accuracy: float | None
    fits: bool = False
    on_frontier: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**vars(self), "depths": list(self.depths)}


def with_frontier(sizes: Sequence[Size], *, budget: Budget, cost: Cost) -> tuple[Size, ...]:
    """The sizes, each with whether it fits, and whether no other that fits is at least as accurate for less `cost`.

    Of equal ones in both, the first is on the frontier. Without accuracies there is no frontier.
    """
    fitting = [size for size in sizes if budget.holds(size) and size.accuracy is not None]
    ranked = sorted(fitting, key=lambda size: (getattr(size, cost), -(size.accuracy or 0.0)))
    best, frontier = -1.0, []
    for size in ranked:
        if size.accuracy is not None and size.accuracy > best:
            best = size.accuracy
            frontier.append(size)
    return tuple(
        replace(size, fits=budget.holds(size), on_frontier=any(size is kept for kept in frontier)) for size in sizes
    )
