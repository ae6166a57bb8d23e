"""Shapley values of components: closed form, exact enumeration, antithetic sampling.

Shapes: S components, M coalitions, P pairs of permutations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from privshard.core.errors import InputError
from privshard.influence.values import Value

NORMAL_975 = 1.959963984540054


@dataclass(frozen=True, eq=False)
class Estimate:
    """Shapley values, and how they were found.

    half_width_S: half the width of each value's 95 % confidence interval; zero for exact methods.
    """

    values_S: np.ndarray
    half_width_S: np.ndarray
    method: Literal["closed_form", "exact", "antithetic_permutations"]
    num_coalitions: int


def mean_game(z: np.ndarray) -> np.ndarray:
    """Shapley values of v(T) = f0 + mean_{j in T} z_j with v(empty) = f0, in closed form.

        phi_i = (1/S) (z_i + (z_i - mean_{j != i} z_j) (H_S - 1)),   H_S = 1 + 1/2 + ... + 1/S

    Derivation: in a random order, i comes after k = 0, ..., S-1 others with probability 1/S each. For k = 0 it moves
    the value from f0 to f0 + z_i: the formula holds for the game whose empty coalition is the base. For k > 0 it
    moves the mean of k to the mean of k + 1, that is by (z_i - mean) / (k+1), and the expected mean of k others is
    the mean of all others. Summing 1/(k+1) over k = 1, ..., S-1 gives H_S - 1.
    Efficiency: the values sum to mean_i z_i = v(all) - v(empty), f0 cancels. A single component gets all of z_1.

    z: (S, ...), what each component alone adds; the values have the same shape.

    >>> mean_game(np.array([3.0, 1.0])).tolist()
    [2.0, 0.0]

    Test: tests/influence/test_shapley.py, against all orders.
    """
    count = len(z)
    if count < 2:
        return np.array(z, dtype=np.float64)
    others = (z.sum(axis=0, dtype=np.float64) - z) / (count - 1)
    harmonic_rest = math.fsum(1.0 / k for k in range(2, count + 1))
    return (z + (z - others) * harmonic_rest) / count


def exact(value: Value, coalition_weights: Callable[[np.ndarray], np.ndarray], *, num_components: int) -> Estimate:
    """Shapley values from all 2^S coalitions:

        phi_i = sum over T without i of |T|! (S-|T|-1)! / S! (v(T + i) - v(T))

    value: coalition weights (M, S) -> values (M). coalition_weights: members (M, S), bool -> weights (M, S).
    num_components: S, at most 20, or InputError.

    Test: tests/influence/test_shapley.py, against all orders.
    """
    count = num_components
    if count > 20:
        raise InputError(
            f"Exact Shapley values: expected at most 20 components, got {count}.", remedy="Sample instead."
        )
    sets_M = np.arange(2**count)
    member_MS = (sets_M[:, None] >> np.arange(count)) & 1 == 1
    v_M = value(coalition_weights(member_MS))
    probability = np.array([1.0 / (count * math.comb(count - 1, size)) for size in range(count)])
    size_M = member_MS.sum(axis=1)
    values_S = np.zeros(count)
    for i in range(count):
        rest = sets_M[~member_MS[:, i]]
        values_S[i] = math.fsum(probability[size_M[rest]] * (v_M[rest | 1 << i] - v_M[rest]))
    return Estimate(values_S, np.zeros(count), "exact", len(sets_M))


def antithetic(
    value: Value,
    coalition_weights: Callable[[np.ndarray], np.ndarray],
    *,
    num_components: int,
    num_pairs: int,
    rng: np.random.Generator,
) -> Estimate:
    """Shapley values estimated from random orders, each taken forwards and backwards.

    A component's marginal contributions early and late in an order are negatively correlated, so the mean of a pair
    varies less than that of two independent orders. Unbiased; the values sum to v(all) - v(empty) for every number of
    pairs. Intervals are normal, from the spread of the P independent pair means: take at least 30.

    num_pairs: P, at least 2. rng: an explicit generator; nothing private hangs on it.

    Test: tests/influence/test_shapley.py, against `exact`.
    """
    if num_pairs < 2:
        raise InputError(f"num_pairs: expected at least 2, got {num_pairs}.")
    count = num_components
    gain_PS = np.empty((num_pairs, count))
    for pair in range(num_pairs):
        order = rng.permutation(count)
        gain_PS[pair] = (_gains(value, coalition_weights, order) + _gains(value, coalition_weights, order[::-1])) / 2
    error_S = gain_PS.std(axis=0, ddof=1) / math.sqrt(num_pairs)
    coalitions = 2 * num_pairs * (count + 1)
    return Estimate(gain_PS.mean(axis=0), NORMAL_975 * error_S, "antithetic_permutations", coalitions)


def _gains(value: Value, coalition_weights: Callable[[np.ndarray], np.ndarray], order: np.ndarray) -> np.ndarray:
    """What each component adds when components join in `order`."""
    count = len(order)
    place_S = np.empty(count, dtype=np.int64)
    place_S[order] = np.arange(count)
    prefix_MS = place_S < np.arange(count + 1)[:, None]
    return np.diff(value(coalition_weights(prefix_MS)))[place_S]
