"""Per-example gradients that are held one by one: of small matrices, and of parameters without factors.

B examples, T tokens, O output and I input width, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from privshard.tangent.places import Direct, Outer


@dataclass(frozen=True, eq=False)
class DenseGradients:
    """One gradient an example, held as it is: parameter name -> (B, ...) (`privshard.core.method.UnitGradients`)."""

    gradients: Mapping[str, Tensor]

    def bounded(self) -> DenseGradients:
        """The same gradients in fp32."""
        return DenseGradients({name: gradient.float() for name, gradient in self.gradients.items()})

    def squared_norms(self, unit_B: Tensor | None, num_units: int) -> Tensor:
        """Squared norm (U,) of each unit's gradient over all parameters."""
        total_U: Tensor | None = None
        for gradient in self.gradients.values():
            flat = gradient.flatten(1)
            unit = flat if unit_B is None else flat.new_zeros(num_units, flat.shape[1]).index_add_(0, unit_B, flat)
            total_U = unit.square().sum(1) if total_U is None else total_U + unit.square().sum(1)
        assert total_U is not None
        return total_U

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """Parameter name -> sum_i weight_i g_i; examples of weight 0 are left out."""
        kept = weight_B.nonzero().squeeze(1)
        return {
            name: torch.tensordot(weight_B[kept].to(gradient.dtype), gradient[kept], dims=1)
            for name, gradient in self.gradients.items()
        }


def per_example(
    function: Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor],
    parameters: Mapping[str, Tensor],
    x_B: Tensor,
    cotangent_BC: Tensor,
    *,
    chunk: int,
) -> dict[str, Tensor]:
    """Name -> gradients (B, ...) of <cotangent_i, logits_i>, by `vmap(grad)` over chunks of examples.

    function: (parameters, x (1, ...), cotangent (1, C)) -> a number.
    """

    def value(theta: Mapping[str, Tensor], x: Tensor, cotangent_C: Tensor) -> Tensor:
        return function(theta, x[None], cotangent_C[None])

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused kernels have no batching rule
        return torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0), chunk_size=chunk)(
            dict(parameters), x_B, cotangent_BC
        )


def matrix_place(name: str, b_BTO: Tensor, a_BTI: Tensor, *, dtype: torch.dtype) -> Outer | Direct:
    """The gradients sum_t outer(b_t, a_t) of a matrix (O, I): held as they are, in `dtype`, where an example's takes no
    more numbers than its factors do, for then the factors needn't be read again for the norm and for the sum."""
    num_tokens, out_width, in_width = b_BTO.shape[1], b_BTO.shape[2], a_BTI.shape[2]
    if out_width * in_width > num_tokens * (out_width + in_width):
        return Outer(name, b_BTO.unsqueeze(2), a_BTI.unsqueeze(2))
    each_BOI = (b_BTO.mT @ a_BTI).to(dtype)
    return Direct(name, each_BOI.flatten(1), shape=(out_width, in_width))
