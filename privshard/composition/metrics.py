"""What logits score on labelled rows: accuracy, per class, calibration and likelihood.

Shapes: B rows, C classes. All rates are fractions; what zero rows cannot tell is None, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from privshard.core.errors import InputError

NUM_BINS = 15


def metrics(logits_BC: np.ndarray, labels_B: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Score logits against labels, as plain JSON values.

    - accuracy: share of rows whose largest logit (the first, if tied) is the label's
    - per_class: [{class, accuracy, num_rows}], the same among the rows of each class
    - negative_log_likelihood: mean of -log softmax(logits)[label], in nats
    - mean_confidence: mean over rows of the largest probability
    - expected_calibration_error: sum_k (B_k / B) |accuracy_k - confidence_k| over 15 bins of confidence,
      bin k being (k/15, (k+1)/15]

    The numbers come from the rows given, exactly: where those are personal data, no privacy guarantee covers them.

    logits_BC: finite. labels_B: index into `classes`, 0 to C - 1.

    Raises InputError for other shapes, labels out of range, and logits that are not finite.

    >>> metrics(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 0]), ["cat", "dog"])["accuracy"]
    0.5

    Test: tests/composition/test_metrics.py, against scikit-learn and a loop.
    """
    logits_BC, labels_B = check_rows(logits_BC, labels_B, classes)
    correct_B = correct_rows(logits_BC, labels_B)
    log_p_BC = _log_softmax(logits_BC)
    confidence_B = np.exp(log_p_BC.max(axis=1)) if len(labels_B) else np.zeros(0)
    return {
        "accuracy": mean_or_none(correct_B),
        "num_rows": len(labels_B),
        "per_class": [
            {"class": name, "accuracy": mean_or_none(correct_B[labels_B == index]), "num_rows": rows}
            for index, (name, rows) in enumerate(zip(classes, class_counts(labels_B, classes), strict=True))
        ],
        "expected_calibration_error": _calibration_error(confidence_B, correct_B),
        "negative_log_likelihood": mean_or_none(-log_p_BC[np.arange(len(labels_B)), labels_B]),
        "mean_confidence": mean_or_none(confidence_B),
    }


def check_rows(logits_BC: np.ndarray, labels_B: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The same rows as float64 and int64, or InputError."""
    logits_BC, labels_B = np.asarray(logits_BC, dtype=np.float64), np.asarray(labels_B)
    if len(classes) == 0:
        raise InputError("Expected at least one class, got none.")
    expected = (len(labels_B), len(classes))
    if labels_B.ndim != 1 or logits_BC.shape != expected:
        raise InputError(
            f"Expected logits of shape (rows, classes) = {expected}, got {logits_BC.shape} for labels {labels_B.shape}."
        )
    if len(labels_B) and not (
        np.issubdtype(labels_B.dtype, np.integer) and labels_B.min() >= 0 and labels_B.max() < len(classes)
    ):
        raise InputError(f"Expected integer labels from 0 to {len(classes) - 1}, got {np.unique(labels_B)[:5]}.")
    broken = int((~np.isfinite(logits_BC)).any(axis=1).sum())
    if broken:
        raise InputError(
            f"Expected finite logits, but {broken} of {len(labels_B)} rows hold NaN or infinity.",
            remedy="A component diverged: drop it, or lower training.lr.",
        )
    return logits_BC, labels_B.astype(np.int64)


def correct_rows(logits_BC: np.ndarray, labels_B: np.ndarray) -> np.ndarray:
    """Whether each row's largest logit (the first, if tied) is its label's."""
    return logits_BC.argmax(axis=1) == labels_B


def class_counts(labels_B: np.ndarray, classes: Sequence[str]) -> list[int]:
    """Number of rows of every class."""
    return np.bincount(labels_B, minlength=len(classes)).tolist()


def mean_or_none(values: np.ndarray) -> float | None:
    """The mean, or None of nothing."""
    return float(values.mean()) if values.size else None


def _log_softmax(logits_BC: np.ndarray) -> np.ndarray:
    """log softmax by rows; shifting by the largest logit first keeps exp from overflowing."""
    if not logits_BC.size:
        return logits_BC
    shifted_BC = logits_BC - logits_BC.max(axis=1, keepdims=True)
    return shifted_BC - np.log(np.exp(shifted_BC).sum(axis=1, keepdims=True))


def _calibration_error(confidence_B: np.ndarray, correct_B: np.ndarray) -> float | None:
    if not confidence_B.size:
        return None
    inner_edges = np.arange(1, NUM_BINS) / NUM_BINS
    bin_B = np.digitize(confidence_B, inner_edges, right=True)
    gap_K = np.bincount(bin_B, weights=correct_B - confidence_B, minlength=NUM_BINS)
    return float(np.abs(gap_K).sum() / confidence_B.size)
