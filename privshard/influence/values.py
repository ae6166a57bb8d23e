"""What a coalition of components is worth: the games whose Shapley values are reported.

The players are components; a coalition is the composition of its members, weights renormalized as a drop does; the
empty coalition is the base, f0. A value maps coalition weights (M, S) to M numbers.
Shapes: S components, B rows, C classes, M coalitions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from privshard.influence.evidence import Evidence

Value = Callable[[np.ndarray], np.ndarray]
CHUNK_LOGITS = 2**22


def accuracy_value(evidence: Evidence) -> Value:
    """Share of rows that a coalition gets right. Costs 2 S B C operations a coalition, no model evaluation."""
    base_BC, labels_B = evidence.base_logits_BC, evidence.labels_B
    z_SX = evidence.z_SBC.reshape(len(evidence.ids), base_BC.size)
    step = max(1, CHUNK_LOGITS // max(1, base_BC.size))

    def value(weights_MS: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(weights_MS), step):
            logits_MBC = (weights_MS[start : start + step] @ z_SX).reshape(-1, *base_BC.shape) + base_BC
            parts.append((logits_MBC.argmax(axis=2) == labels_B).mean(axis=1))
        return np.concatenate(parts)

    return value


def true_logit_value(evidence: Evidence) -> Value:
    """Mean over rows of the true class's logit. Linear in the weights, so S + 1 means are all it needs."""
    rows_B = np.arange(len(evidence.labels_B))
    base = evidence.base_logits_BC[rows_B, evidence.labels_B].mean()
    z_S = evidence.z_SBC[:, rows_B, evidence.labels_B].mean(axis=1)
    return lambda weights_MS: base + weights_MS @ z_S
