"""The compact form of GIFT: W' = W (I + phi psi), as pure functions of tensors.

O output and I input width of a layer, R rank, L layers that share the generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def shapes(*, in_width: int, rank: int) -> Shapes:
    """phi (I, R) and psi (R, I): 2 I R parameters, however many layers share them."""
    return {"phi": (in_width, rank), "psi": (rank, in_width)}


def initial(*, in_width: int, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """phi normal with variance 1/I, so that its columns have about unit length; psi zero, so that W' = W."""
    phi_IR = torch.randn(in_width, rank, generator=generator) / in_width**0.5
    return {"phi": phi_IR, "psi": torch.zeros(rank, in_width)}


def left(parameters: Mapping[str, Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """W phi of each layer, (O, R): its cluster vectors, and the left factor of its residual W phi psi."""
    return [weight_OI @ parameters["phi"] for weight_OI in weights]


def left_pullback(weights: Sequence[Tensor], dleft_LBOR: Sequence[Tensor]) -> dict[str, Tensor]:
    """Example by example, the gradient of phi from those of the left factors: sum_l W_l^T dleft_l, (B, I, R)."""
    total = None
    for weight_OI, dleft_BOR in zip(weights, dleft_LBOR, strict=True):
        part = weight_OI.mT @ dleft_BOR
        total = part if total is None else total + part
    assert total is not None
    return {"phi": total}
