"""Confidence bounds: what a number of draws proves about a mechanism, and with which confidence.

P coordinates. Every function takes `alpha`, the probability with which its bound may be wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_SHARE = 0.05  # of alpha, for what is known so well that its own bound costs almost nothing


@dataclass(frozen=True)
class Shift:
    """How far one inclusion moves the sum of a run, in units of the clipping norm.

    slope: the estimate. deviation: of the sum's noise, estimated. slope_error: standard error of the slope.
    lower: the bound on slope / deviation.
    """

    slope: float
    deviation: float
    slope_error: float
    lower: float


def shift(sums_P: np.ndarray, inclusions_P: np.ndarray, *, alpha: float) -> Shift:
    """A lower bound on m / s in the model sums_p = a + m inclusions_p + s N(0, 1), independent over p.

    With S = sum_p (n_p - mean n)^2 the least-squares slope is m + s Z / sqrt(S), Z standard normal, and
    RSS / s^2 is chi-squared with P - 2 degrees of freedom, whatever m, s and a are. Let s_+ be the upper bound on s
    that holds with probability 1 - alpha_1. Then m / s >= slope / s_+ - z(1 - alpha_2) / sqrt(S) with probability
    1 - alpha_1 - alpha_2. Nothing in it is asymptotic. Test: tests/audit/test_bounds.py.
    """
    from scipy.special import chdtri, ndtri

    number = len(sums_P)
    centered_P = inclusions_P - inclusions_P.mean()
    spread = float(centered_P @ centered_P)
    if spread == 0:
        return Shift(0.0, float(np.std(sums_P, ddof=1)), math.inf, 0.0)
    slope = float(centered_P @ sums_P) / spread
    residual_P = sums_P - sums_P.mean() - slope * centered_P
    squares = float(residual_P @ residual_P)
    deviation = math.sqrt(squares / (number - 2))
    # chdtri(v, p) is the x with P[chi-squared_v >= x] = p
    most = math.sqrt(squares / chdtri(number - 2, 1 - _SHARE * alpha))
    if most <= 1e-12 * abs(slope):
        return Shift(slope, deviation, 0.0, math.inf if slope > 0 else 0.0)
    error = 1 / math.sqrt(spread)
    lower = slope / most - float(-ndtri((1 - _SHARE) * alpha)) * error
    return Shift(slope, deviation, deviation * error, max(0.0, lower))


def proportion_bounds(successes: np.ndarray, trials: int, *, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Clopper and Pearson's lower and upper bounds on a probability, each wrong with probability alpha at most."""
    from scipy.special import betaincinv

    k = np.asarray(successes, dtype=float)
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), trials - np.maximum(k, 1) + 1, alpha), 0.0)
    held = np.minimum(k, trials - 1)
    high = np.where(k < trials, betaincinv(held + 1, trials - held, 1 - alpha), 1.0)
    return low, high


@dataclass(frozen=True)
class Threshold:
    """One attack that says "in" above a threshold (or below it, `above` False), and what it proved."""

    epsilon: float
    value: float
    above: bool
    hits: float
    false_alarms: float


def threshold_bound(in_N: np.ndarray, out_N: np.ndarray, *, delta: float, alpha: float) -> Threshold:
    """A lower bound on epsilon from the scores of members and non-members; no distribution is assumed.

    (epsilon, delta) forces P[A | in] <= e^epsilon P[A | out] + delta and the same with the two exchanged. Half of the
    scores choose the event A (a threshold, and which side of it says what); the other half, independent of the first,
    gives Clopper and Pearson's bounds on both probabilities, each at alpha / 2:
    epsilon >= log((P_-[A | in] - delta) / P_+[A | out]). Scores are independent, equally distributed inside a group.
    """
    half_in, half_out = len(in_N) // 2, len(out_N) // 2
    values = np.unique(np.quantile(np.concatenate([in_N[:half_in], out_N[:half_out]]), _candidates()))
    found = [
        (gains[at], values[at], above)
        for above in (True, False)
        for gains in [_gain(in_N[:half_in], out_N[:half_out], values, above, delta, alpha)]
        for at in [int(np.argmax(gains))]
    ]
    _, value, above = max(found)
    chosen = np.array([value])
    bound = float(_gain(in_N[half_in:], out_N[half_out:], chosen, above, delta, alpha)[0])
    hits, false_alarms = (float(np.mean(scores >= value)) for scores in (in_N[half_in:], out_N[half_out:]))
    return Threshold(max(0.0, bound), float(value), above, hits, false_alarms)


def _candidates() -> np.ndarray:
    ends = np.geomspace(1e-5, 0.5, 100)
    return np.concatenate([ends, 1 - ends])


def _gain(
    in_N: np.ndarray, out_N: np.ndarray, values: np.ndarray, above: bool, delta: float, alpha: float
) -> np.ndarray:
    """The bound that each threshold gives; the event is "score >= value" for members, its complement for others."""
    hits, alarms = (len(x) - np.searchsorted(np.sort(x), values) for x in (in_N, out_N))
    likely, rare, n_likely, n_rare = hits, alarms, len(in_N), len(out_N)
    if not above:
        likely, rare, n_likely, n_rare = len(out_N) - alarms, len(in_N) - hits, len(out_N), len(in_N)
    low, _ = proportion_bounds(likely, n_likely, alpha=alpha / 2)
    _, high = proportion_bounds(rare, n_rare, alpha=alpha / 2)
    return np.log(np.maximum(low - delta, 1e-300) / high)


def guesses_bound(correct: int, *, guesses: int, canaries: int, delta: float, alpha: float) -> float:
    """The largest epsilon that so many correct guesses in one run refute, at confidence 1 - alpha.

    Theorem 5.2 of Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run" (2023): `canaries` fair
    coins decide who is in, an attacker guesses `guesses` of them and abstains on the others. Under (epsilon, delta)-DP

        P[correct >= v] <= beta + 2 m delta max_i (P[v - i <= B < v] / i),   beta = P[B >= v],
        B ~ Binomial(guesses, e^epsilon / (1 + e^epsilon))
    """
    if guesses == 0 or _guessing_p(correct, guesses, canaries, 0.0, delta) > alpha:
        return 0.0
    low, high = 0.0, 1.0
    while high < 64 and _guessing_p(correct, guesses, canaries, high, delta) <= alpha:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        refuted = _guessing_p(correct, guesses, canaries, middle, delta) <= alpha
        low, high = (middle, high) if refuted else (low, middle)
    return low


def _guessing_p(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """The most probable that (epsilon, delta) makes so many correct guesses."""
    from scipy.special import betainc, gammaln

    chance = 1 / (1 + math.exp(-epsilon))
    beta = float(betainc(correct, guesses - correct + 1, chance)) if correct > 0 else 1.0
    k = np.arange(correct - 1, -1, -1)
    log_pmf = gammaln(guesses + 1) - gammaln(k + 1) - gammaln(guesses - k + 1)
    log_pmf = log_pmf + k * math.log(chance) + (guesses - k) * math.log1p(-chance)
    steepest = float(np.max(np.cumsum(np.exp(log_pmf)) / np.arange(1, len(k) + 1))) if len(k) else 0.0
    return min(1.0, beta + 2 * canaries * delta * steepest)
