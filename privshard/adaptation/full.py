"""Full fine-tuning: every weight of the last blocks, or of the whole network, moves.

B batch, T tokens, O output and I input width of a layer, P numbers of one parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from privshard.adaptation.adapter import STEM, Seen
from privshard.adaptation.gradients import per_example
from privshard.adaptation.tail import Stem, stem_tokens
from privshard.core.displacement import Space
from privshard.models.vit import ViTView
from privshard.tangent.linearize import first_linearized
from privshard.tangent.places import Direct, Outer

_CHUNK = 16


class FullAdapter:
    """`privshard.adaptation.adapter.FactoredAdapter` of the weights themselves, w' = w + d.

    blocks: how many of the last blocks move, with the norms after them; "all" moves everything, patch and position
    embedding and class token included, so images and not tokens are what is kept. Of the stem's parameters, theta holds
    the displacement as one vector each.

    In factors, a gradient costs no more memory than the activations; only the stem's are held example by example.
    Raises InputError for a number of blocks that the model doesn't have.
    """

    name = "full"
    space: Space = "weight"
    reads_inputs = True

    def __init__(self, view: ViTView, *, blocks: int | str = "all") -> None:
        first = first_linearized(view, blocks)
        self.first_block: int | None = None if blocks == "all" else first
        self._modules = {name: part for name, part in view.parts(first).items() if name != "head"}
        self._stem = Stem(view) if blocks == "all" else None
        base = dict(view.model.named_parameters())
        names = [f"{name}.{suffix}" for name, part in self._modules.items() for suffix, _ in part.named_parameters()]
        self._flat = () if self._stem is None else self._stem.parameter_names()
        self._base = {name: base[name] for name in (*self._flat, *names)}

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Zero."""
        return {
            name: torch.zeros(value.numel() if name in self._flat else value.shape)
            for name, value in self._base.items()
        }

    def changed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """w + d."""
        return {name: value + parameters[name].view_as(value) for name, value in self._base.items()}

    def displacement(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """d itself."""
        return {name: parameters[name].view_as(value) for name, value in self._base.items()}

    def num_parameters(self) -> int:
        """All weights that move, the head's apart."""
        return sum(value.numel() for value in self._base.values())

    def layers(self) -> tuple[str, ...]:
        """Every layer with parameters after the stem."""
        return tuple(self._modules)

    def places(self, parameters: Mapping[str, Tensor], seen: Mapping[str, Seen]) -> Sequence[Outer | Direct]:
        """One outer product a token for weights; sums over tokens for biases, norms and layer scales."""
        found: list[Outer | Direct] = []
        for name, module in self._modules.items():
            found += _layer_places(name, module, seen[name])
        return [*found, *(self._stem_places(parameters, seen[STEM]) if self._stem is not None else [])]

    def _stem_places(self, parameters: Mapping[str, Tensor], seen: Seen) -> list[Outer | Direct]:
        """The stem's gradients, example by example."""
        stem = self._stem
        assert stem is not None
        shapes = {name: self._base[name].shape for name in self._flat}
        values = {name: self._base[name] + parameters[name].view(shape) for name, shape in shapes.items()}

        def value(theta: Mapping[str, Tensor], images: Tensor, back: Tensor) -> Tensor:
            return (stem_tokens(stem, images, theta) * back).sum()

        each = per_example(value, values, seen.a, seen.b, chunk=_CHUNK)
        return [Direct(name, gradient.flatten(1)) for name, gradient in each.items()]


def _layer_places(name: str, module: nn.Module, seen: Seen) -> list[Outer | Direct]:
    bias = [] if getattr(module, "bias", None) is None else [Direct(f"{name}.bias", _total(seen.b))]
    if isinstance(module, nn.Linear):
        return [Outer(f"{name}.weight", seen.b.unsqueeze(2), seen.a.unsqueeze(2)), *bias]
    suffix = "weight" if isinstance(module, nn.LayerNorm) else "gamma"
    return [Direct(f"{name}.{suffix}", _total(seen.b * seen.a)), *bias]


def _total(x: Tensor) -> Tensor:
    """(B, ..., P) -> (B, P): summed over everything between."""
    return x if x.ndim == 2 else x.sum(dim=tuple(range(1, x.ndim - 1)))
