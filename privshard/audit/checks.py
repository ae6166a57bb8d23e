"""Checks: promises of the plan that the draws of an audit can refute, each at the audit's alarm level."""

from __future__ import annotations

import math

import numpy as np

from privshard.audit.draws import Draws
from privshard.audit.report import ALARM, Check
from privshard.core.privacy import MechanismPlan

_NUM_CHECKS = 10


def step_checks(plan: MechanismPlan, *, present: Draws, empty: Draws, num_canaries: int) -> tuple[Check, ...]:
    """Everything that the bound of the step audit takes for granted, and what would leak past it.

    present: a shard of `num_canaries` canaries. empty: another shard, without anybody. Every check fails with
    probability at most 1e-7 where the mechanism is what the plan says.
    """
    z = _quantile(ALARM / _NUM_CHECKS / 2)
    occupied = slice(0, num_canaries)
    counts_K, others = present.inclusions_P[occupied], present.sums_P[num_canaries:]
    planned = plan.noise_multiplier * math.sqrt(plan.steps)
    residual_K = present.sums_P[occupied] - counts_K
    return (
        _rate(plan, counts_K, z),
        _poisson(plan, counts_K, present.batch_sizes, z),
        _clipping(residual_K, counts_K, z),
        _noise(others, planned, z),
        _empty_shard(empty.sums_P, planned, z),
        _gaussian(others / planned),
        _independent(present.sums_P[num_canaries:], empty.sums_P[num_canaries:], z),
    )


def _rate(plan: MechanismPlan, counts_K: np.ndarray, z: float) -> Check:
    """Units take part as often as was accounted."""
    trials, q = len(counts_K) * plan.steps, plan.sample_rate
    found = float(counts_K.sum()) / trials
    error = math.sqrt(q * (1 - q) / trials)
    detail = f"units took part in a share {found:.6g} of the steps; the plan says {q:g}"
    return Check("sampling rate", abs(found - q) <= z * error + 1e-12, detail)


def _poisson(plan: MechanismPlan, counts_K: np.ndarray, batch_sizes: tuple[int, ...], z: float) -> Check:
    """Participations of a unit, and sizes of batches, vary as independent draws do. Shuffling varies less."""
    sizes_T = np.zeros(plan.steps)
    sizes_T[: len(batch_sizes)] = batch_sizes[: plan.steps]
    scores = [
        _dispersion(counts_K, trials=plan.steps, rate=plan.sample_rate),
        _dispersion(sizes_T, trials=len(counts_K), rate=plan.sample_rate),
    ]
    ok = len(batch_sizes) <= plan.steps and all(abs(score) <= z for score in scores)
    detail = "the spread of participations and of batch sizes is {:+.1f} and {:+.1f} standard deviations off Poisson's"
    return Check("Poisson sampling", ok, detail.format(*scores))


def _clipping(residual_K: np.ndarray, counts_K: np.ndarray, z: float) -> Check:
    """A unit moves the sum by the clipping norm whenever it takes part."""
    weight_K = counts_K.astype(float)
    squares = float(weight_K @ weight_K)
    if squares == 0:
        return Check("clipping", True, "nobody took part")
    excess = float(weight_K @ residual_K) / squares
    error = float(np.std(residual_K)) / math.sqrt(squares)
    detail = f"a unit moves the sum by {1 + excess:.4g} clipping norms; the plan says 1"
    return Check("clipping", abs(excess) <= z * error + 1e-5, detail)


def _noise(sums: np.ndarray, planned: float, z: float) -> Check:
    """The noise where nobody is has the planned standard deviation."""
    found = float(np.std(sums))
    detail = f"standard deviation {found:.5g} clipping norms; the plan says {planned:.5g}"
    return Check("noise", abs(found / planned - 1) <= z / math.sqrt(2 * len(sums)) + 1e-5, detail)


def _empty_shard(sums: np.ndarray, planned: float, z: float) -> Check:
    """An empty shard, all of whose batches are empty, releases the same noise at the same scale."""
    found = float(np.std(sums))
    detail = f"an empty shard has standard deviation {found:.5g}; with units in it the plan says {planned:.5g}"
    return Check("empty shard", abs(found / planned - 1) <= z / math.sqrt(2 * len(sums)) + 1e-5, detail)


def _gaussian(standard: np.ndarray) -> Check:
    """The noise is normal: Kolmogorov's distance, by the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart."""
    from scipy.special import ndtr

    number = len(standard)
    below = ndtr(np.sort(standard))
    steps = np.arange(number + 1) / number
    distance = float(max(np.max(steps[1:] - below), np.max(below - steps[:-1])))
    limit = math.sqrt(math.log(2 * _NUM_CHECKS / ALARM) / (2 * number))
    detail = f"distance {distance:.4f} from the planned normal distribution; {limit:.4f} would be too far"
    return Check("normal noise", distance <= limit, detail)


def _independent(first: np.ndarray, second: np.ndarray, z: float) -> Check:
    """Two shards, and neighbouring coordinates of one, have noise of their own."""
    pairs = ((first, second), (first[:-1], first[1:]), (second[:-1], second[1:]))
    scores = [_correlation(one, other) * math.sqrt(len(one)) for one, other in pairs]
    shards, coordinates = scores[0], max(scores[1:], key=abs)
    detail = f"correlation of {shards:+.1f} standard errors between shards, {coordinates:+.1f} between coordinates"
    return Check("independent noise", all(abs(score) <= z for score in scores), detail)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / scale if scale > 0 else 1.0


def _dispersion(counts: np.ndarray, *, trials: int, rate: float) -> float:
    """How many standard deviations the spread of binomial counts is off; 0 where there is nothing to spread."""
    variance = trials * rate * (1 - rate)
    if variance == 0:
        return 0.0 if np.all(counts == trials) else math.inf
    index = float(np.square(counts - trials * rate).sum()) / variance
    kurtosis = 2 + (1 - 6 * rate * (1 - rate)) / variance
    return (index - len(counts)) / math.sqrt(max(kurtosis, 1e-9) * len(counts)) if kurtosis > 1e-9 else 0.0


def _quantile(alpha: float) -> float:
    from scipy.special import ndtri

    return float(-ndtri(alpha))
