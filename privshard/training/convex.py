"""Losses of a linear model as convex functions of its logits: value, slope and curvature in double precision.

n examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privshard.training.loss import cotangent, losses


@dataclass(frozen=True, eq=False)
class ConvexLoss:
    """The mean loss over the rows of a shard, at given logits. kind: "cross_entropy" or "square"."""

    kind: str
    labels_n: Tensor

    def value(self, logits_nC: Tensor) -> Tensor:
        """mean_i loss_i, a scalar."""
        return losses(self.kind, logits_nC, self.labels_n).mean()

    def slope(self, logits_nC: Tensor) -> Tensor:
        """d value / d logits, (n, C)."""
        return cotangent(self.kind, logits_nC, self.labels_n) / len(self.labels_n)

    def curvature(self, logits_nC: Tensor, moved_nC: Tensor) -> Tensor:
        """(d^2 value / d logits^2) moved, (n, C): diag(p) - p p^T by example, or 2 / C times the identity."""
        num, classes = logits_nC.shape
        if self.kind == "square":
            return moved_nC * (2 / classes / num)
        p_nC = torch.softmax(logits_nC, dim=1)
        weighted_nC = p_nC * moved_nC
        return (weighted_nC - p_nC * weighted_nC.sum(1, keepdim=True)) / num
