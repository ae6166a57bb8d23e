"""The generator: from its few parameters and the frozen weights to the residual of every target layer, in factors.

Both forms give layer l the residual left_l @ right, left_l (O x R) made of W_l and right (R x I) shared by all layers
under one generator. So a residual never needs to be formed: y = x W^T + (x right^T) left^T.

O output and I input width of a layer, R rank, B examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp, vmap

from privshard.adaptation.gift import compact, paca
from privshard.adaptation.gift.layers import TargetLayer, target_layers
from privshard.adaptation.gift.sharing import Group, groups
from privshard.adaptation.gift.spec import GiftSpec
from privshard.core.errors import InputError
from privshard.models.vit import ViTView

PREFIX = "gift"


@dataclass(frozen=True, eq=False)
class Factors:
    """The residual left (O, R) @ right (R, I) of one layer."""

    left_OR: Tensor
    right_RI: Tensor

    def product(self) -> Tensor:
        """The residual itself, (O, I)."""
        return self.left_OR @ self.right_RI


@dataclass(frozen=True, eq=False)
class Gift:
    """A generator on one base. Its parameters are named gift.GROUP.NAME; made by `gift_on`."""

    spec: GiftSpec
    groups: tuple[Group, ...]

    @property
    def layers(self) -> tuple[TargetLayer, ...]:
        """All target layers, group by group."""
        return tuple(layer for group in self.groups for layer in group.layers)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter."""
        return {
            _full(group, name): shape for group in self.groups for name, shape in self._shapes(group.shape[1]).items()
        }

    def num_parameters(self) -> int:
        """How many numbers the generator has: 24,576 for one compact form of rank 16 on ViT-B/16."""
        return sum(torch.Size(shape).numel() for shape in self.shapes().values())

    def initial(self, *, seed: int) -> dict[str, Tensor]:
        """Starting parameters, a function of `seed`; every residual is exactly zero. fp32, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        return {
            _full(group, name): value
            for group in self.groups
            for name, value in self._initial(group, generator).items()
        }

    def factors(self, parameters: Mapping[str, Tensor]) -> dict[str, Factors]:
        """Layer -> the factors of its residual; differentiable in `parameters`."""
        found: dict[str, Factors] = {}
        for group in self.groups:
            mine = self.own(parameters, group)
            lefts = self._left(mine, _weights(group, mine))
            right_RI = mine[self._right]
            found |= {layer.name: Factors(left, right_RI) for layer, left in zip(group.layers, lefts, strict=True)}
        return found

    def residuals(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The base's parameter name -> its residual, zero in rows that no layer targets; differentiable.

        The oracle of every faster path, and what a component stores."""
        found: dict[str, Tensor] = {}
        factors = self.factors(parameters)
        for layer in self.layers:
            product_OI = factors[layer.name].product()
            so_far = found.get(layer.parameter)
            if so_far is None:
                so_far = product_OI.new_zeros(layer.module.weight.shape)
            before, after = so_far[: layer.rows.start], so_far[layer.rows.stop :]
            found[layer.parameter] = torch.cat([before, product_OI, after])
        return found

    def cluster_vectors(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Layer -> C (O, M): with x the layer's outputs, x C are M maps. Compact form: C = W phi, M = R.

        PaCa form: the assignments, less the mean of each over the rows of W. They lie between 0 and 1, so that without
        it every map would mostly be one and the same, the sum of all outputs.
        """
        found: dict[str, Tensor] = {}
        for group in self.groups:
            mine = self.own(parameters, group)
            for layer, weight_OI in zip(group.layers, _weights(group, mine), strict=True):
                if self.spec.generator == "compact":
                    found[layer.name] = weight_OI @ mine["phi"]
                else:
                    assigned_OM = paca.clusters(mine, weight_OI, depth=self.spec.depth)
                    found[layer.name] = assigned_OM - assigned_OM.mean(0)
        return found

    def pullback(
        self, parameters: Mapping[str, Tensor], dleft: Mapping[str, Tensor], dright: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Example by example, the gradients of all parameters from those of the factors: name -> (B, *shape).

        dleft: layer -> (B, O, R). dright: layer -> (B, R, I). Sums over the layers of a group, exactly.
        """
        found: dict[str, Tensor] = {}
        for group in self.groups:
            mine = self.own(parameters, group)
            weights = _weights(group, mine)
            cotangents = [dleft[layer.name] for layer in group.layers]
            if self.spec.generator == "compact":
                gradients = compact.left_pullback(weights, cotangents)
            else:
                gradients = self._paca_pullback(mine, weights, cotangents)
            gradients[self._right] = sum(
                (dright[layer.name] for layer in group.layers[1:]), dright[group.layers[0].name]
            )
            found |= {_full(group, name): value for name, value in gradients.items()}
        return found

    def own(self, parameters: Mapping[str, Tensor], group: Group) -> dict[str, Tensor]:
        """The parameters of one group, by their short names."""
        return {name: parameters[_full(group, name)] for name in self._shapes(group.shape[1])}

    @property
    def _right(self) -> str:
        return "psi" if self.spec.generator == "compact" else "recover"

    def _shapes(self, in_width: int) -> dict[str, tuple[int, ...]]:
        spec = self.spec
        if spec.generator == "compact":
            return compact.shapes(in_width=in_width, rank=spec.rank)
        return paca.shapes(
            in_width=in_width, rank=spec.rank, clusters=spec.clusters, depth=spec.depth, ffn_ratio=spec.ffn_ratio
        )

    def _initial(self, group: Group, generator: torch.Generator) -> dict[str, Tensor]:
        if self.spec.generator == "compact":
            return compact.initial(in_width=group.shape[1], rank=self.spec.rank, generator=generator)
        return paca.initial(self._shapes(group.shape[1]), generator=generator)

    def _left(self, mine: Mapping[str, Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        if self.spec.generator == "compact":
            return compact.left(mine, weights)
        return paca.left(mine, weights, depth=self.spec.depth)

    def _paca_pullback(
        self, mine: Mapping[str, Tensor], weights: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """One pull-back through the small transformer for each example, batched by vmap."""
        inner = {name: value.detach() for name, value in mine.items() if name != self._right}
        pull = vjp(lambda values: paca.left(values, weights, depth=self.spec.depth), inner)[1]
        (gradients,) = vmap(pull)(list(cotangents))
        return gradients


def gift_on(view: ViTView, spec: GiftSpec) -> Gift:
    """The generator that `spec` describes, on the layers of a vision transformer.

    Raises InputError for layers that don't exist, for different shapes under one generator, and for a rank above the
    width of a layer. Test: tests/adaptation/gift/test_generator.py.
    """
    found = groups(target_layers(view, spec.layers), sharing=spec.sharing)
    for group in found:
        if spec.rank > min(group.shape):
            raise InputError(
                f"method.rank: expected at most the width of the layers, but the rank is {spec.rank} and "
                f"{group.layers[0].name} is {group.shape}.",
                remedy=f"Choose a rank from 1 to {min(group.shape)}.",
            )
    return Gift(spec, found)


def _full(group: Group, name: str) -> str:
    return f"{PREFIX}.{group.name}.{name}"


def _weights(group: Group, mine: Mapping[str, Tensor]) -> list[Tensor]:
    like = next(iter(mine.values()))
    return [layer.weight_OI.detach().to(like) for layer in group.layers]
