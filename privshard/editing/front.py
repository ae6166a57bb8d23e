"""Fronts: the area under a method's generalization-locality front, and paired comparisons over groups.

G groups, S strengths; a curve is (G, S, 2): generalization, locality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privshard.core.errors import InputError


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided bootstrap interval."""

    value: float
    low: float
    high: float


def area(points_S2: np.ndarray) -> float:
    """The area, in [0, 1], of what the points dominate between the origin and (1, 1): 1 for a perfect method.

    >>> area(np.array([[0.5, 1.0], [1.0, 0.5]]))
    0.75
    """
    total, reached = 0.0, 0.0
    for first, second in sorted(points_S2.tolist(), reverse=True):
        if second > reached:
            total += first * (second - reached)
            reached = second
    return total


def front_area(curve_GS2: np.ndarray) -> float:
    """The area of the front of a method's mean points, one a strength."""
    return area(curve_GS2.mean(axis=0))


def area_interval(curve_GS2: np.ndarray, *, draws: int, seed: int, confidence: float = 0.95) -> Interval:
    """The area with its interval over groups."""
    found = [front_area(curve_GS2[rows]) for rows in _resamples(len(curve_GS2), draws, seed)]
    return _interval(front_area(curve_GS2), found, confidence)


def difference_interval(
    ours_GS2: np.ndarray, theirs_GS2: np.ndarray, *, draws: int, seed: int, confidence: float = 0.95
) -> Interval:
    """The difference of two methods' areas with its interval, from the same resampled groups for both."""
    if len(ours_GS2) != len(theirs_GS2):
        raise InputError(f"bootstrap: expected the same groups for both, got {len(ours_GS2)} and {len(theirs_GS2)}.")
    rows = _resamples(len(ours_GS2), draws, seed)
    found = [front_area(ours_GS2[row]) - front_area(theirs_GS2[row]) for row in rows]
    return _interval(front_area(ours_GS2) - front_area(theirs_GS2), found, confidence)


def _resamples(num: int, draws: int, seed: int) -> np.ndarray:
    if num < 2:
        raise InputError(f"bootstrap: expected at least two groups, got {num}.")
    return np.random.default_rng(seed).integers(num, size=(draws, num))


def _interval(value: float, found: Sequence[float], confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
