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
from privshard.adaptation.gift.generator import Gift, gift_on
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

    def __init__(self, view: ViTView, spec: GiftSpec) -> None:
        self.view = view
        self.gift: Gift = gift_on(view, spec)
        self.first_block = min(layer.block for layer in self.gift.layers)
        self._base = {layer.parameter: layer.module.weight for layer in self.gift.layers}

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Parameters drawn from `seed`; every residual is exactly zero."""
        return self.gift.initial(seed=seed)

    def changed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W + residual, by the base's parameter names; differentiable."""
        residuals = self.gift.residuals(parameters)
        return {name: self._base[name].to(value) + value for name, value in residuals.items()}

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
        for layer in self.gift.layers:
            found = seen[layer.parameter.removesuffix(".weight")]
            left_OR, right_RI = factors[layer.name].left_OR.to(found.b), factors[layer.name].right_RI.to(found.a)
            b_BNO = found.b[..., layer.rows]
            dleft[layer.name] = (b_BNO.mT @ (found.a @ right_RI.mT)).to(parameters[self._any])
            dright[layer.name] = ((b_BNO @ left_OR).mT @ found.a).to(parameters[self._any])
        gradients = self.gift.pullback(parameters, dleft, dright)
        return [_whole(name, gradient) for name, gradient in gradients.items()]

    @property
    def _any(self) -> str:
        return next(iter(self.gift.shapes()))


def _whole(name: str, gradient: Tensor) -> Outer | Direct:
    """A gradient held example by example, as a place: of a matrix (B, P, Q), row p is 1 times row p."""
    if gradient.ndim == 2:
        return Direct(name, gradient)
    rows_B1PQ = gradient.unsqueeze(1)
    return Outer(name, torch.ones_like(rows_B1PQ[..., :1]), rows_B1PQ)
