"""Losses of one example, with their gradients on the logits. B examples, C classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TARGET = 15.0


def cotangent(loss: str, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """d(loss of each example) / d(its logits), (B, C).

    "cross_entropy": softmax - onehot. "square": the rescaled square loss mean_c((f - a onehot)^2) with a = 15
    (arXiv 2307.08122, section 3.3), so 2 (f - a onehot) / C.
    """
    onehot_BC = F.one_hot(labels_B, logits_BC.shape[1]).to(logits_BC.dtype)
    if loss == "square":
        return 2 / logits_BC.shape[1] * (logits_BC - _TARGET * onehot_BC)
    return torch.softmax(logits_BC, dim=1) - onehot_BC


def losses(loss: str, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """The loss of each example, (B,)."""
    if loss == "square":
        onehot_BC = F.one_hot(labels_B, logits_BC.shape[1]).to(logits_BC.dtype)
        return (logits_BC - _TARGET * onehot_BC).square().mean(dim=1)
    return F.cross_entropy(logits_BC, labels_B, reduction="none")
