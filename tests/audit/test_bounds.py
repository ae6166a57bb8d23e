"""Confidence bounds: exact values, coverage by simulation, and that they find what is there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privshard.audit.bounds import guesses_bound, proportion_bounds, shift, threshold_bound


def test_the_shift_bound_covers_and_is_close():
    rng = np.random.default_rng(1)
    ratio, wrong, bounds = 0.4, 0, []
    for _ in range(400):
        counts = rng.binomial(5, 0.3, 10_000)
        sums = 7.0 + 2.0 * counts + rng.normal(0, 5.0, 10_000)
        found = shift(sums, counts, alpha=0.1)
        wrong += found.lower > ratio
        bounds.append(found.lower)
    assert 0.02 < wrong / 400 < 0.14  # 0.1 is allowed; a bound that is never wrong would be a loose one
    assert np.median(bounds) > 0.36


def test_the_shift_bound_equals_textbook_regression():
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 4, 50)
    sums = 3 * counts + rng.normal(size=50)
    fit = stats.linregress(counts, sums)
    found = shift(sums, counts, alpha=0.05)
    assert found.slope == pytest.approx(fit.slope)
    assert found.slope_error == pytest.approx(fit.stderr)


def test_sums_without_noise_prove_everything_and_without_canaries_nothing():
    counts = np.array([1, 1, 0, 0])
    assert shift(counts * 2.0, counts, alpha=0.05).lower == math.inf
    assert shift(np.arange(4.0), np.zeros(4), alpha=0.05).lower == 0.0
    assert shift(-counts * 2.0, counts, alpha=0.05).lower == 0.0


@pytest.mark.parametrize("successes", [0, 1, 7, 20])
def test_proportion_bounds_are_clopper_and_pearsons(successes):
    low, high = proportion_bounds(np.array(successes), 20, alpha=0.025)
    exact = stats.binomtest(successes, 20).proportion_ci(0.95, method="exact")
    assert (float(low), float(high)) == pytest.approx((exact.low, exact.high))


def test_the_threshold_bound_holds_for_randomized_response_and_finds_most_of_it():
    rng, epsilon, wrong, bounds = np.random.default_rng(3), 2.0, 0, []
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    for _ in range(200):
        member, other = rng.random(2000) < truth, rng.random(2000) >= truth
        found = threshold_bound(member * 1.0, other * 1.0, delta=0.0, alpha=0.05).epsilon
        wrong += found > epsilon
        bounds.append(found)
    assert wrong <= 20
    assert np.median(bounds) > 1.6


def test_the_threshold_bound_finds_an_event_on_either_side_and_nothing_in_nothing():
    rng = np.random.default_rng(4)
    low, high = rng.random(4000), rng.random(4000) + 5
    assert threshold_bound(high, low, delta=1e-5, alpha=0.05).epsilon > 5
    assert threshold_bound(low, low[::-1], delta=1e-5, alpha=0.05).epsilon < 0.1


def test_guesses_follow_the_binomial_where_delta_is_zero():
    found = guesses_bound(90, guesses=100, canaries=100, delta=0.0, alpha=0.05)
    assert stats.binom.sf(89, 100, 1 / (1 + math.exp(-found))) == pytest.approx(0.05, rel=1e-6)
    assert guesses_bound(50, guesses=100, canaries=100, delta=0.0, alpha=0.05) == 0.0
    assert guesses_bound(0, guesses=0, canaries=10, delta=0.0, alpha=0.05) == 0.0


def test_delta_costs_and_more_canaries_make_it_cost_more():
    bounds = [
        guesses_bound(95, guesses=100, canaries=canaries, delta=delta, alpha=0.05)
        for canaries, delta in ((100, 0.0), (100, 1e-4), (1000, 1e-4), (1000, 1e-2))
    ]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < bounds[0] - 0.1


def test_the_guessing_bound_holds_for_randomized_response():
    rng, epsilon = np.random.default_rng(5), 1.0
    right = rng.binomial(500, 1 / (1 + math.exp(-epsilon)), 300)
    wrong = np.mean([guesses_bound(int(v), guesses=500, canaries=500, delta=0.0, alpha=0.1) > epsilon for v in right])
    assert 0.03 < wrong < 0.16
