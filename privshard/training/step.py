"""The clipped sum of a step: what the data contribute, before noise. B examples, U units, C classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from privshard.core.method import Constants, Method, UnitGradients, pull
from privshard.privacy.clipping import clip_factors
from privshard.training.gather import take
from privshard.training.loss import cotangent
from privshard.training.units import Units


def clipped_sum(
    method: Method,
    constants: Constants,
    parameters: Mapping[str, Tensor],
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
        batch = take(constants, rows, device=labels_B.device)
        with torch.autocast(labels_B.device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits_BC, pullback = pull(method, batch, parameters)
            gradients = pullback(cotangent(loss, logits_BC.float(), labels_B[at]))
        gradients = gradients if dtype == torch.float32 else gradients.float()
        num_units = int(unit_of_row[-1]) + 1
        if max_grad_norm is None:
            part = _unclipped(gradients, unit_B, num_units)
        else:
            squared_U = gradients.squared_norms(unit_B, num_units)
            part = gradients.weighted_sum(clip_factors(squared_U, max_grad_norm=max_grad_norm)[unit_B])
        total = part if total is None else {name: total[name] + part[name] for name in total}
    return total


def _unclipped(gradients: UnitGradients, unit_B: Tensor, num_units: int) -> dict[str, Tensor]:
    """The sum over the units whose gradient is finite: where the sum over all of them is finite, these are all."""
    total = gradients.weighted_sum(torch.ones(len(unit_B), device=unit_B.device))
    if bool(torch.stack([torch.isfinite(tensor).all() for tensor in total.values()]).all()):
        return total
    squared_U = gradients.squared_norms(unit_B, num_units)
    return gradients.weighted_sum(torch.isfinite(squared_U).to(squared_U.dtype)[unit_B])
