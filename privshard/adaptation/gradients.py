"""Per-example gradients of parameters without factors: one backward pass for their sum, `vmap(grad)` for each of them.

B examples, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


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


@dataclass(frozen=True, eq=False)
class LazyGradients:
    """Gradients of a batch that are computed when asked for: their plain sum by one backward pass, the others
    example by example (`privshard.core.method.UnitGradients`).

    summed: name -> sum of all examples' gradients. each: the gradients one by one. Norms and every weighted sum that
    follows come from the same tensors, so a clipping bound holds for what is summed, in any type.
    """

    summed: Callable[[], dict[str, Tensor]]
    each: Callable[[], DenseGradients]

    @cached_property
    def _total(self) -> dict[str, Tensor]:
        return self.summed()

    @cached_property
    def _dense(self) -> DenseGradients:
        return self.each()

    def bounded(self) -> LazyGradients:
        """The same gradients, in fp32 once computed."""
        return LazyGradients(
            lambda: {name: total.float() for name, total in self._total.items()}, lambda: self._dense.bounded()
        )

    def squared_norms(self, unit_B: Tensor | None, num_units: int) -> Tensor:
        """Squared norm (U,) of each unit's gradient over all parameters."""
        return self._dense.squared_norms(unit_B, num_units)

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """Parameter name -> sum_i weight_i g_i."""
        if "_dense" not in self.__dict__ and bool((weight_B == 1).all()):
            return self._total
        return self._dense.weighted_sum(weight_B)


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
