"""Which layers share one generator, and whether they may: layers under one generator have one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from privshard.adaptation.gift.layers import TargetLayer
from privshard.core.errors import InputError

Sharing = Literal["all", "kind", "block", "layer"]

_KEYS: Mapping[str, Callable[[TargetLayer], str]] = {
    "all": lambda layer: "all",
    "kind": lambda layer: layer.kind,
    "block": lambda layer: f"blocks.{layer.block}",
    "layer": lambda layer: layer.name,
}


@dataclass(frozen=True, eq=False)
class Group:
    """Layers that share one generator: all of one shape (O, I)."""

    name: str
    layers: tuple[TargetLayer, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I) of every layer."""
        return self.layers[0].shape


def groups(layers: Sequence[TargetLayer], *, sharing: str) -> tuple[Group, ...]:
    """Layers by generator, in order: one for "all" of them, or one per "kind", "block" or "layer".

    Raises InputError for layers of different shapes under one generator, showing both, and for an unknown sharing.
    """
    if sharing not in _KEYS:
        raise InputError(f"method.sharing: expected one of {', '.join(get_args(Sharing))}, got {sharing!r}.")
    members: dict[str, list[TargetLayer]] = {}
    for layer in layers:
        members.setdefault(_KEYS[sharing](layer), []).append(layer)
    for name, group in members.items():
        first, other = group[0], next((layer for layer in group if layer.shape != group[0].shape), None)
        if other is not None:
            raise InputError(
                f"method.sharing: layers under one generator ({name}) must have one shape, but {first.name} is "
                f"{first.shape} and {other.name} is {other.shape}.",
                remedy="Share by kind, so that each shape has a generator of its own, or choose layers of one shape.",
            )
    return tuple(Group(name, tuple(group)) for name, group in members.items())
