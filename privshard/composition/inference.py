"""A composed model as a function of images: one pass of the base, and one tangent, or one a component.

Shapes: B images, S components, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from privshard.core.errors import InputError
from privshard.core.method import Constants, Method


class ComposedModel(nn.Module):
    """images (B, 3, H, W) -> logits (B, C): sum_i weight_i f(x; D_i), one pass of the frozen base for all.

    A composition of linear components is one displacement of weight 1, their average: f(x; w0) + J(x) D. The base runs
    only as far as the method needs it: with one linearized block and class-token pooling, the last block is computed
    for the class token alone, so the composed model costs about what its base costs (`jobs/benchmarks/inference.py`).

    model: the base's module, so that its weights move with this module. parts: (weight, name -> tensor), at least one.
    """

    def __init__(
        self, method: Method, *, model: nn.Module, parts: Sequence[tuple[float, Mapping[str, Tensor]]]
    ) -> None:
        super().__init__()
        self.model = model
        self._method = method
        self._parts: list[tuple[float, dict[str, str]]] = []
        for number, (weight, displacement) in enumerate(parts):
            keys = {name: f"displacement_{number}_{at}" for at, name in enumerate(sorted(displacement))}
            for name, key in keys.items():
                self.register_buffer(key, displacement[name])
            self._parts.append((weight, keys))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        constants = self._method.encode(images)
        total: Tensor | None = None
        for weight, keys in self._parts:
            displacement = {name: self.get_buffer(key) for name, key in keys.items()}
            logits = self._method.logits(constants, displacement)
            logits = logits if weight == 1.0 else weight * logits
            total = logits if total is None else total + logits
        assert total is not None
        return total


def stacked(displacements: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> the tensors of S displacements (S, …): make it once, use it for every batch. InputError for none, and
    for displacements of other names or shapes."""
    kinds = [{name: tuple(tensor.shape) for name, tensor in item.items()} for item in displacements]
    if not kinds or any(kind != kinds[0] for kind in kinds):
        raise InputError(f"displacements: expected at least one, all of the same names and shapes, got {len(kinds)}.")
    return {name: torch.stack([item[name] for item in displacements]) for name in kinds[0]}


@torch.no_grad()
def logits_of_each(method: Method, constants: Constants, stack_S: Mapping[str, Tensor]) -> Tensor:
    """Logits (S, B, C) of the base moved by each of S displacements alone; see `stacked`.

    What doesn't depend on the displacement is computed once for all of them, and the rest in products of S matrices at
    a time. For methods that are linear in the displacement. Equal to S calls of `method.logits` up to rounding
    (tests/composition/test_inference.py).
    """
    return torch.vmap(lambda displacement: method.logits(constants, displacement))(dict(stack_S))
