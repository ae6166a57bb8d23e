"""Slow, obvious references that the tests compare the library with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import permutations

import numpy as np


def exact_weighted_sum(arrays: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """sum_i weight_i array_i, number by number in rational arithmetic."""
    shape = next(iter(arrays.values())).shape
    out = np.empty(shape)
    for place in np.ndindex(*shape):
        out[place] = float(sum(Fraction(float(arrays[name][place])) * Fraction(weights[name]) for name in weights))
    return out


def shapley_by_orders(value: Callable[[frozenset[int]], float], count: int) -> list[float]:
    """Shapley values by their definition: the mean, over all orders, of what each player adds on joining."""
    gains = [0.0] * count
    for order in permutations(range(count)):
        present: frozenset[int] = frozenset()
        for player in order:
            gains[player] += value(present | {player}) - value(present)
            present |= {player}
    return [gain / math.factorial(count) for gain in gains]


def calibration_error_by_loop(logits_BC: np.ndarray, labels_B: np.ndarray, num_bins: int) -> float:
    """Expected calibration error, one row at a time, bins (k/K, (k+1)/K]."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for logits_C, label in zip(logits_BC, labels_B, strict=True):
        p_C = np.exp(logits_C) / np.exp(logits_C).sum()
        place = next(k for k in range(num_bins) if p_C.max() <= (k + 1) / num_bins or k == num_bins - 1)
        bins[place].append((float(p_C.max()), bool(p_C.argmax() == label)))
    return sum(abs(sum(hit - p for p, hit in rows)) for rows in bins) / len(labels_B)
