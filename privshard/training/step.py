"""The clipped sum of a step: what the data contribute, before noise. B examples, U units, C classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from privshard.core.method import Constants, Method
from privshard.privacy.clipping import clip_factors
from privshard.training.loss import cotangent
from privshard.training.units import Units


def clipped_sum(
    method: Method,
    constants: Constants,
    displacement: Mapping[str, Tensor],
    *,
    labels_B: Tensor,
    units: Units,
    taken: np.ndarray,
    loss: str,
    max_grad_norm: float | None,
    max_rows: int = 512,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor] | None:
    """sum_u clip(g_u, C) over the taken units, g_u the sum of the gradients of u's examples; None without any unit.

    Exact: every unit's norm is that of its whole gradient over all parameters (tests/training/test_step.py compares
    with a per-example loop). A unit whose gradient isn't finite contributes nothing. Batches change only rounding.

    dtype: of the frozen computation. The gradients' factors may be rounded by it, but norms and sums are taken of the
    rounded factors in fp32, so the bound C holds for every type.

    constants, labels_B: the whole shard's, rows in canonical order. taken: positions of units. max_grad_norm: C, or
    None for no clipping.
    """
    total: dict[str, Tensor] | None = None
    for rows, unit_of_row in units.batches(taken, max_rows=max_rows):
        at = torch.from_numpy(rows).to(labels_B.device)
        unit_B = torch.from_numpy(unit_of_row).to(labels_B.device)
        whole = len(rows) == len(labels_B) and bool((np.diff(rows) == 1).all())
        batch = constants if whole else {name: tensor[at] for name, tensor in constants.items()}
        with torch.autocast(labels_B.device.type, dtype=dtype, enabled=dtype != torch.float32):
            cotangent_BC = cotangent(loss, method.logits(batch, displacement).float(), labels_B[at])
            gradients = method.gradients(batch, displacement, cotangent_BC)
        gradients = gradients if dtype == torch.float32 else gradients.float()
        squared_U = gradients.squared_norms(unit_B, int(unit_of_row[-1]) + 1)
        if max_grad_norm is None:
            factor_U = torch.isfinite(squared_U).to(squared_U.dtype)
        else:
            factor_U = clip_factors(squared_U, max_grad_norm=max_grad_norm)
        part = gradients.weighted_sum(factor_U[unit_B])
        total = part if total is None else {name: total[name] + part[name] for name in total}
    return total
