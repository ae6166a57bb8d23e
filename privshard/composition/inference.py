"""A composed model as a function of images: one pass of the base, and one tangent, or one a component.

Shapes: B images, S components, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from privshard.core.errors import InputError
from privshard.core.method import Constants, LinearMethod, Method


class ComposedModel(nn.Module):
    """images (B, 3, H, W) -> logits (B, C) of the base moved by one displacement: f(x; w0) + J(x) D for linear methods.

    The base runs once, and only as far as the method needs it: with one linearized block and class-token pooling, the
    last block is computed for the class token alone, so the composed model costs about what its base costs
    (`jobs/benchmarks/inference.py`). Components that were averaged cost no more than one.

    model: the base's module, so that its weights move with this module. displacement: name -> tensor.
    """

    def __init__(self, method: Method, *, model: nn.Module, displacement: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self._method = method
        self._names = {name: f"displacement_{number}" for number, name in enumerate(sorted(displacement))}
        for name, key in self._names.items():
            self.register_buffer(key, displacement[name])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        displacement = {name: self.get_buffer(key) for name, key in self._names.items()}
        return self._method.logits(self._method.encode(images), displacement)


def stacked(displacements: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> the tensors of S displacements (S, …): make it once, use it for every batch. InputError for none, and
    for displacements of other names or shapes."""
    kinds = [{name: tuple(tensor.shape) for name, tensor in item.items()} for item in displacements]
    if not kinds or any(kind != kinds[0] for kind in kinds):
        raise InputError(f"displacements: expected at least one, all of the same names and shapes, got {len(kinds)}.")
    return {name: torch.stack([item[name] for item in displacements]) for name in kinds[0]}


@torch.no_grad()
def logits_of_each(method: LinearMethod, constants: Constants, stack_S: Mapping[str, Tensor]) -> Tensor:
    """Logits (S, B, C) of the base moved by each of S displacements alone; see `stacked`.

    What doesn't depend on the displacement is computed once for all of them, and the rest in products of S matrices at
    a time. Equal to S calls of `method.logits` up to rounding (tests/composition/test_inference.py).
    """
    return torch.vmap(lambda displacement: method.logits(constants, displacement))(dict(stack_S))
