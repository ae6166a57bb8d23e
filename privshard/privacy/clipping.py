"""Clipping: the factors that bound one unit's part in a sum of gradients. Suffix U: units."""

from __future__ import annotations

import torch
from torch import Tensor

from privshard.core.errors import InputError


def clip_factors(squared_norm_U: Tensor, *, max_grad_norm: float) -> Tensor:
    """The factor of each unit's gradient: min(1, C / |g|), and 0 where |g| is not finite.

    Guaranteed: exactly 1 at and below the bound (zero included), so that small gradients pass unchanged; above it the
    clipped norm is C up to the rounding of the norm and the product (a few units in the last place; Opacus' +1e-6 in
    the denominator is left out, so factors differ from its by up to 1e-6 / |g|). Small negative squares, which Gram
    matrices round to, count as 0. A factor of 0 alone does not remove a non-finite unit, since 0 * NaN is NaN: apply
    `zero_nonfinite` to everything that the sum multiplies.

    squared_norm_U: |g_u|^2, any float type. max_grad_norm: C > 0, and C^2 must be a normal number of that type.

    >>> clip_factors(torch.tensor([0.0, 0.25, 4.0, float("nan")]), max_grad_norm=1.0).tolist()
    [1.0, 1.0, 0.5, 0.0]
    """
    finfo = torch.finfo(squared_norm_U.dtype)
    if not finfo.tiny <= max_grad_norm**2 <= finfo.max:
        raise InputError(
            f"privacy.max_grad_norm: expected {finfo.tiny**0.5:.0e} to {finfo.max**0.5:.0e}, got {max_grad_norm}."
        )
    norm_U = squared_norm_U.clamp(min=0).sqrt()
    # The second clamp only keeps the branch that is not taken from dividing by zero.
    factor_U = torch.where(norm_U <= max_grad_norm, 1.0, max_grad_norm / norm_U.clamp(min=max_grad_norm))
    return torch.where(nonfinite(squared_norm_U), 0.0, factor_U)


def nonfinite(squared_norm_U: Tensor) -> Tensor:
    """Which units have a gradient that is not finite (or too large to square): bool, one a unit."""
    return ~torch.isfinite(squared_norm_U)


def zero_nonfinite(x_UX: Tensor, bad_U: Tensor) -> Tensor:
    """`x` with the whole row of every bad unit replaced by zeros, whatever it held; other rows keep their bits.

    >>> zero_nonfinite(torch.tensor([[1.0, 2.0], [float("nan"), 3.0]]), torch.tensor([False, True])).tolist()
    [[1.0, 2.0], [0.0, 0.0]]
    """
    return torch.where(bad_U.reshape(-1, *[1] * (x_UX.dim() - 1)), 0.0, x_UX)
