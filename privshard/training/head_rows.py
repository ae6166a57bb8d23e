"""The head of a linear model, eliminated from least squares: one small factor serves all classes.

n examples, C classes, F numbers that a class has in the head: its row of weights, and its bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privshard.core.method import LinearMethod
from privshard.tangent.places import Direct, Outer, Places
from privshard.training.linear_map import LinearMap

_WEIGHT, _BIAS = "head.weight", "head.bias"


@dataclass(frozen=True, eq=False)
class HeadRows:
    """The head adds X h to the logits, h (F, C), with the same X (n, F) for every class.

    For residuals y of everything else, the h that minimizes |y + X h|^2 + ridge |h|^2 is -(X^T X + ridge I)^-1 X^T y,
    and leaves M y, M = I - X (X^T X + ridge I)^-1 X^T. Everything in double precision.

    Test: tests/training/test_head_rows.py.
    """

    rows_nF: Tensor
    factor_FF: Tensor
    has_bias: bool

    def best(self, residual_nC: Tensor) -> Tensor:
        """The best h (F, C) beside the residuals y."""
        return -torch.cholesky_solve(self.rows_nF.mT @ residual_nC, self.factor_FF)

    def rest(self, residual_nC: Tensor) -> Tensor:
        """M y (n, C): what the best head leaves of y."""
        return residual_nC + self.rows_nF @ self.best(residual_nC)

    def tensors(self, h_FC: Tensor) -> dict[str, Tensor]:
        """h by parameter name."""
        if not self.has_bias:
            return {_WEIGHT: h_FC.mT}
        return {_WEIGHT: h_FC[:-1].mT, _BIAS: h_FC[-1]}


def head_rows(method: LinearMethod, jacobian: LinearMap, *, ridge: float) -> HeadRows | None:
    """The rows of a method's head and their factor; None where its logits have no head of that form."""
    parts = []
    for part in jacobian.batches():
        cotangent_BC = jacobian.base_nC.new_zeros(len(next(iter(part.values()))), jacobian.base_nC.shape[1])
        cotangent_BC[:, 0] = 1
        gradients = method.gradients(part, jacobian.zero, cotangent_BC.to(jacobian.dtype))
        rows_BF = _rows(gradients) if isinstance(gradients, Places) else None
        if rows_BF is None:
            return None
        parts.append(rows_BF.double())
    rows_nF = torch.cat(parts)
    square_FF = rows_nF.mT @ rows_nF
    square_FF.diagonal().add_(ridge)
    return HeadRows(rows_nF, torch.linalg.cholesky(square_FF), _BIAS in jacobian.zero)


def _rows(gradients: Places) -> Tensor | None:
    """(B, F): what the head's first row of weights, and its bias, meet; from the gradients of the first logit."""
    weights = [place for place in gradients.places if place.name == _WEIGHT]
    biases = [place for place in gradients.places if place.name == _BIAS]
    if len(weights) != 1 or len(biases) > 1 or not isinstance(weights[0], Outer):
        return None
    b_BO, a_BI = weights[0].b_BTGO, weights[0].a_BTGI
    bias = [place for place in biases if isinstance(place, Direct)]
    if b_BO.shape[1:3] != (1, 1) or len(bias) != len(biases):
        return None
    if any(own[..., 1:].any() for own in (b_BO, *(place.g_BP for place in bias))):  # another class's row takes part
        return None
    first_BF = weights[0].scale * b_BO[:, 0, 0, :1] * a_BI[:, 0, 0]
    return torch.cat([first_BF, *(place.scale * place.g_BP[:, :1] for place in bias)], dim=1)
