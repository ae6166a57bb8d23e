"""GIFT as an adapter: the weights it changes, the displacement it leaves, and exact per-example gradients in factors.

The parameters are shared by the layers, so the gradient of example i sums over them before any norm is taken. With
y = x (W + left right)^T, z = x right^T, and b the cotangent of y, layer l and example i have (derived)

    dleft_l = sum_n b_n z_n^T                         (O x R)
    dright  = sum_l sum_n (left_l^T b_n) x_n^T        (R x I)

and dleft_l is pulled back to the parameters by the generator: for the compact form dphi = sum_l W_l^T dleft_l. So an
example's whole gradient is 2 I R numbers, and beyond the forward and backward pass through the frozen network it costs
N R (2 O + 2 I) + O I R multiplications a layer; no gradient of a weight (O x I) is ever formed.

B examples, N tokens, O output and I input width of a layer, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from privshard.adaptation.adapter import Seen
from privshard.adaptation.gift.generator import Factors, Gift, gift_on
from privshard.adaptation.gift.spec import GiftSpec
from privshard.core.displacement import Space
from privshard.models.vit import ViTView
from privshard.tangent.places import Direct, Outer


class GiftAdapter:
    """`privshard.adaptation.adapter.FactoredAdapter` of a generator: W' = W + residual(W; theta) for every layer.

    The changed weights are formed once a step, not once an example: O I R multiplications a layer, less than the two
    rank-R products that a batch of more than a few dozen tokens would need. Test:
    tests/adaptation/gift/test_adapter.py, per-example gradients against vmap(grad) in double precision.
    """

    name = "gift"
    space: Space = "weight"
    reads_inputs = True

    def __init__(self, view: ViTView, spec: GiftSpec) -> None:
        self.view = view
        self.gift: Gift = gift_on(view, spec)
        self.first_block = min(layer.block for layer in self.gift.layers)
        self._by_rows = sorted(self.gift.layers, key=lambda layer: (layer.parameter, layer.rows.start))
        self._base = {layer.parameter: layer.module.weight for layer in self.gift.layers}

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Parameters drawn from `seed`; every residual is exactly zero."""
        return self.gift.initial(seed=seed)

    def changed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W + residual, by the base's parameter names; differentiable."""
        factors = self.gift.factors(parameters)
        residuals: dict[str, list[tuple[slice, Factors]]] = {}
        for layer in self._by_rows:
            residuals.setdefault(layer.parameter, []).append((layer.rows, factors[layer.name]))
        return {name: _added(self._base[name], found) for name, found in residuals.items()}

    def displacement(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The residuals: products, not factors, formed in double precision and rounded once."""
        precise = {name: value.double() for name, value in parameters.items()}
        dtype = next(iter(parameters.values())).dtype
        return {name: value.to(dtype) for name, value in self.gift.residuals(precise).items()}

    def num_parameters(self) -> int:
        """How many numbers the generator has, the head apart."""
        return self.gift.num_parameters()

    def layers(self) -> tuple[str, ...]:
        """The linear modules that hold the target layers."""
        return tuple(dict.fromkeys(name.removesuffix(".weight") for name in self._base))

    def places(self, parameters: Mapping[str, Tensor], seen: Mapping[str, Seen]) -> Sequence[Outer | Direct]:
        """The per-example gradients of all parameters."""
        factors = self.gift.factors(parameters)
        dleft: dict[str, Tensor] = {}
        dright: dict[str, Tensor] = {}
        dtype = parameters[self._any].dtype
        for group in self.gift.groups:
            right_RI = factors[group.layers[0].name].right_RI
            for layer in group.layers:
                found = seen[layer.parameter.removesuffix(".weight")]
                left_OR, right_RI = factors[layer.name].left_OR.to(found.b), right_RI.to(found.a)
                b_BNO = found.b[..., layer.rows]
                dleft[layer.name] = (b_BNO.mT @ (found.a @ right_RI.mT)).to(dtype)
                dright[layer.name] = ((b_BNO @ left_OR).mT @ found.a).to(dtype)
        gradients = self.gift.pullback(parameters, dleft, dright)
        return [
            Direct(name, gradient.flatten(1), shape=tuple(gradient.shape[1:])) for name, gradient in gradients.items()
        ]

    @property
    def _any(self) -> str:
        return next(iter(self.gift.shapes()))


def _added(weight_OI: Tensor, residuals: Sequence[tuple[slice, Factors]]) -> Tensor:
    """W with the residuals of some of its rows, in their order: one product where a residual has all rows."""
    parts: list[Tensor] = []
    upto = 0
    for rows, factors in residuals:
        like = factors.right_RI
        parts += [weight_OI[upto : rows.start].to(like)] if rows.start > upto else []
        parts.append(torch.addmm(weight_OI[rows].to(like), factors.left_OR, like))
        upto = rows.stop
    parts += [weight_OI[upto:].to(parts[-1])] if upto < len(weight_OI) else []
    return parts[0] if len(parts) == 1 else torch.cat(parts)
