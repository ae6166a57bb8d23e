"""The clipped sum of a step: what the data contribute, before noise. B examples, U units, C classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privshard.core.method import Constants, Method, ParameterMethod, UnitGradients, pull
from privshard.privacy.clipping import clip_factors
from privshard.training.gather import take, upload
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
    compile: bool = False,
) -> dict[str, Tensor] | None:
    """sum_u clip(g_u, C) over the taken units, g_u the sum of the gradients of u's examples; None without any unit.

    Exact: every unit's norm is that of its whole gradient over all parameters (tests/training/test_step.py compares
    with a per-example loop). A unit whose gradient isn't finite contributes nothing. Batches change only rounding.

    dtype: of the frozen computation. The gradients' factors may be rounded by it, but norms and sums are taken of the
    rounded factors in fp32, and norms count what rounding may add, so the bound C holds for every type. compile: fuse
    what is between the cached constants and the factors, and between the factors and the sums, as two graphs: what is
    normed is what is summed.

    constants, labels_B: the whole shard's, rows in canonical order; constants may stay on the CPU while labels_B is on
    the device that computes. taken: positions of units. max_grad_norm: C, or None for no clipping.
    """
    total: dict[str, Tensor] | None = None
    for rows, unit_of_row in units.batches(taken, max_rows=max_rows):
        device = labels_B.device
        in_place = device.type == "cuda" and dtype == torch.bfloat16  # elsewhere a copy is read faster than an index
        batch = take(constants, rows, device=device, indexed=method.indexed if in_place else ())
        consecutive = bool((np.diff(rows) == 1).all())
        labels = labels_B[rows[0] : rows[0] + len(rows)] if consecutive else labels_B[upload(rows, device)]
        unit_B = None if unit_of_row[-1] == len(rows) - 1 else upload(unit_of_row, device)
        num_units = int(unit_of_row[-1]) + 1  # ascending, and none without a row
        run = _compiled if compile else _plain
        each = partial(run(_gradients), method, batch, parameters, labels, loss=loss, dtype=dtype)
        if max_grad_norm is not None:
            part = run(_bounded_sum)(each(), unit_B, num_units=num_units, bound=max_grad_norm)
        elif isinstance(method, ParameterMethod):
            part = _sum(method, batch, parameters, labels, loss=loss, dtype=dtype)
            part = part if _finite(part) else _finite_sum(each(), unit_B, num_units)
        else:
            gradients = each()
            part = run(_whole_sum)(gradients, torch.ones(len(labels), device=device))
            part = part if _finite(part) else _finite_sum(gradients, unit_B, num_units)
        total = part if total is None else {name: total[name] + part[name] for name in total}
    return total


def _gradients(
    method: Method,
    batch: Constants,
    parameters: Mapping[str, Tensor],
    labels_B: Tensor,
    *,
    loss: str,
    dtype: torch.dtype,
) -> UnitGradients:
    with torch.autocast(labels_B.device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits_BC, pullback = pull(method, batch, parameters)
        gradients = pullback(cotangent(loss, logits_BC.float(), labels_B))
    return gradients if dtype == torch.float32 else gradients.bounded()


def _bounded_sum(gradients: UnitGradients, unit_B: Tensor | None, *, num_units: int, bound: float) -> dict[str, Tensor]:
    factor_U = clip_factors(gradients.squared_norms(unit_B, num_units), max_grad_norm=bound)
    return gradients.weighted_sum(factor_U if unit_B is None else factor_U[unit_B])


def _sum(
    method: ParameterMethod,
    batch: Constants,
    parameters: Mapping[str, Tensor],
    labels_B: Tensor,
    *,
    loss: str,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    with torch.autocast(labels_B.device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits_BC, pullback = method.pull_sum(batch, parameters)
    return pullback(cotangent(loss, logits_BC.float(), labels_B))


def _whole_sum(gradients: UnitGradients, weight_B: Tensor) -> dict[str, Tensor]:
    return gradients.weighted_sum(weight_B)


def _finite(total: Mapping[str, Tensor]) -> bool:
    """Whether a sum is finite: then every gradient in it is."""
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in total.values()]).all())


def _finite_sum(gradients: UnitGradients, unit_B: Tensor | None, num_units: int) -> dict[str, Tensor]:
    """The sum over the units whose gradient is finite."""
    squared_U = gradients.squared_norms(unit_B, num_units)
    factor_U = torch.isfinite(squared_U).to(squared_U.dtype)
    return gradients.weighted_sum(factor_U if unit_B is None else factor_U[unit_B])


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)
