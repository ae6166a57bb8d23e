"""Displacements: named tensors away from one base, as a vector space that refuses to mix bases or spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from privshard.core.digest import tensors_digest
from privshard.core.errors import InputError
from privshard.core.model import Space as Space


@dataclass(frozen=True, eq=False)
class Displacement:
    """A point of the vector space of changes to one base.

    tensors: parameter name of the base -> displacement of that parameter, same shape.
    base: digest of the base. space: "tangent" acts through the linearization, "weight" is added to the weights,
    "prompt" holds extra tokens (and a head's displacement): tokens have no zero that leaves the base as it is, so only
    averages of them mean something, which is for whoever combines them to check (`privshard.composition`).

    +, -, scalar * and unary - act tensor by tensor, exactly as torch does; operands must share base, space, names
    and shapes, or InputError shows both sides.

    >>> d = Displacement({"head.bias": torch.ones(2)}, base="b", space="tangent")
    >>> (d + d - 2 * d).tensors["head.bias"].tolist()
    [0.0, 0.0]
    """

    tensors: Mapping[str, Tensor]
    base: str
    space: Space

    def __add__(self, other: Displacement) -> Displacement:
        return self._zip(other, torch.add)

    def __sub__(self, other: Displacement) -> Displacement:
        return self._zip(other, torch.sub)

    def __mul__(self, scale: float) -> Displacement:
        return self._map(lambda tensor: tensor * scale)

    __rmul__ = __mul__

    def __truediv__(self, scale: float) -> Displacement:
        return self._map(lambda tensor: tensor / scale)

    def __neg__(self) -> Displacement:
        return self._map(torch.neg)

    def to(self, *args, **kwargs) -> Displacement:
        """The same displacement with every tensor passed through `Tensor.to`."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names, sorted."""
        return tuple(sorted(self.tensors))

    @cached_property
    def digest(self) -> str:
        """Content digest: equal exactly when base, space, names, types, shapes and bits are equal."""
        arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in self.tensors.items()}
        return tensors_digest(arrays, "displacement", self.base, self.space)

    def dot(self, other: Displacement) -> float:
        """Euclidean inner product, accumulated in double precision."""
        self._check(other)
        return sum(
            float(torch.dot(self.tensors[name].double().flatten(), other.tensors[name].double().flatten()))
            for name in self.names
        )

    def norm(self) -> float:
        """Euclidean norm over all tensors."""
        return self.dot(self) ** 0.5

    def _map(self, function: Callable[[Tensor], Tensor]) -> Displacement:
        return Displacement({name: function(self.tensors[name]) for name in self.names}, self.base, self.space)

    def _zip(self, other: Displacement, function: Callable[[Tensor, Tensor], Tensor]) -> Displacement:
        self._check(other)
        return Displacement(
            {name: function(self.tensors[name], other.tensors[name]) for name in self.names}, self.base, self.space
        )

    def _check(self, other: Displacement) -> None:
        mine, theirs = _signature(self), _signature(other)
        if mine != theirs:
            raise InputError(
                f"Displacements of different kinds: {_difference(mine, theirs)}.",
                remedy="Only displacements of one base and one space, learnt by the same method, can be combined.",
            )


def zeros(shapes: Mapping[str, Iterable[int]], *, base: str, space: Space) -> Displacement:
    """The origin: fp32 zeros of the given shapes."""
    return Displacement({name: torch.zeros(tuple(shape)) for name, shape in shapes.items()}, base, space)


def _signature(item: Displacement) -> dict[str, object]:
    return {"base": item.base, "space": item.space, **{name: tuple(item.tensors[name].shape) for name in item.names}}


def _difference(mine: dict[str, object], theirs: dict[str, object]) -> str:
    keys = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
    shown = "; ".join(f"{key}: {mine.get(key, 'absent')} against {theirs.get(key, 'absent')}" for key in keys[:3])
    return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
