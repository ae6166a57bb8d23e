"""How often the lower bound of the step audit exceeds the claim, and how much of the claim it reaches."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from privshard.audit.draws import draw
from privshard.audit.step import VACANT, proven
from privshard.audit.tradeoff import ComposedGaussian

CONFIDENCE = 0.95


def repeat(claimed, keys, *, epsilon: float, repetitions: int, num_canaries: int) -> tuple[np.ndarray, float, float]:
    """The bounds of so many audits of a fresh run each; the epsilon of the mechanism without slack; the claim."""
    plan, claim = claimed(epsilon)
    bounds = []
    for seed in range(repetitions):
        drawn = draw(
            plan,
            present=range(num_canaries),
            num_coordinates=(1 + VACANT) * num_canaries,
            root_key=keys(seed)(0, 0),
        )
        achieved, _ = proven(plan, drawn, num_canaries=num_canaries, alpha=1 - CONFIDENCE)
        bounds.append(achieved.epsilon(plan.delta))
    exact = ComposedGaussian(1 / plan.noise_multiplier, plan.sample_rate, plan.steps).epsilon(plan.delta)
    return np.array(bounds), exact, float(claim.epsilon)


def too_often(wrong: int, repetitions: int) -> bool:
    """Whether so many bounds above the truth refute the confidence (a true one is called refuted once in 10,000)."""
    return stats.binom.sf(wrong - 1, repetitions, 1 - CONFIDENCE) < 1e-4


@pytest.mark.parametrize(("epsilon", "num_canaries"), [(1.0, 50_000), (3.0, 15_000), (8.0, 10_000)])
def test_the_bound_is_valid_and_close_over_twenty_repetitions(claimed, keys, epsilon, num_canaries):
    bounds, exact, claim = repeat(claimed, keys, epsilon=epsilon, repetitions=20, num_canaries=num_canaries)
    assert not too_often(int((bounds > exact).sum()), 20)
    assert not too_often(int((bounds > claim).sum()), 20)
    assert bounds.min() >= 0.85 * claim


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_the_bound_is_valid_and_close_over_two_hundred_repetitions(claimed, keys, epsilon):
    bounds, exact, claim = repeat(claimed, keys, epsilon=epsilon, repetitions=200, num_canaries=50_000)
    wrong = int((bounds > exact).sum())
    assert not too_often(wrong, 200)
    assert wrong >= 1, "a bound that is never wrong at confidence 0.95 is too loose"
    assert not too_often(int((bounds > claim).sum()), 200)
    assert bounds.min() >= 0.85 * claim
