"""Trade-off curves against closed forms, quadrature, and an independent accountant."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from privshard.audit.tradeoff import ComposedGaussian, claimed_misses, gaussian_delta, gaussian_epsilon

TABLE = [(0.01, 1.0, 1000, 1e-5, 1.828), (0.1, 1.0, 200, 1e-5, 9.971), (1.0, 5.0, 100, 1e-5, 9.997)]


@pytest.mark.parametrize(("rate", "noise", "steps", "delta", "pld"), TABLE)
def test_the_composed_epsilon_is_just_below_the_reference_table(rate, noise, steps, delta, pld):
    found = ComposedGaussian(1 / noise, rate, steps).epsilon(delta)
    assert pld - 0.02 < found < pld + 5e-4


def test_it_never_exceeds_an_optimistic_accountant_on_random_settings():
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    rng = np.random.default_rng(0)
    for _ in range(4):
        rate, noise, steps = rng.uniform(0.02, 0.9), rng.uniform(0.8, 4), int(rng.integers(1, 40))
        step = pld.from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=1e-3)
        above = step.self_compose(steps).get_epsilon_for_delta(1e-5)
        found = ComposedGaussian(1 / noise, rate, steps).epsilon(1e-5)
        assert above - 0.06 - 0.01 * above < found <= above


@pytest.mark.parametrize("mu", [0.1, 1.0, 4.0])
def test_delta_is_the_integral_of_the_positive_part(mu):
    for epsilon in (0.0, 0.5, 2.0):
        excess = lambda y: max(0.0, stats.norm.pdf(y, mu) - math.exp(epsilon) * stats.norm.pdf(y))  # noqa: B023, E731
        from_here = epsilon / mu + mu / 2  # where the likelihood ratio is e^epsilon
        value, _ = integrate.quad(excess, from_here, from_here + mu + 12, epsabs=1e-14)
        assert gaussian_delta(mu, epsilon=epsilon) == pytest.approx(value, rel=1e-6, abs=1e-13)


def test_epsilon_inverts_delta_and_nothing_proves_nothing():
    for mu in (0.2, 1.0, 5.0):
        assert gaussian_delta(mu, epsilon=gaussian_epsilon(mu, delta=1e-5)) == pytest.approx(1e-5, rel=1e-6)
    assert gaussian_epsilon(0.0, delta=1e-5) == 0.0
    assert gaussian_epsilon(1e-9, delta=1e-5) == 0.0
    assert ComposedGaussian(1.0, 0.0, 10).epsilon(1e-5) == 0.0


def test_a_subsampled_curve_meets_the_plain_one_at_rate_one_and_guessing_at_rate_zero():
    alarms = np.linspace(0.001, 0.999, 50)
    plain = ComposedGaussian(0.5, 1.0, 4).misses(alarms)
    assert np.allclose(ComposedGaussian(0.5, 1 - 1e-7, 4).misses(alarms), plain, atol=0.01)
    assert np.allclose(ComposedGaussian(0.5, 1e-6, 4).misses(alarms), 1 - alarms, atol=0.01)


def test_the_planned_curve_stays_above_the_claimed_one():
    alarms = np.geomspace(1e-6, 1, 60)
    for mechanism in (ComposedGaussian(0.3, 1.0, 10), ComposedGaussian(1.0, 0.1, 30)):
        epsilon = mechanism.epsilon(1e-5) + 0.02
        assert np.all(mechanism.misses(alarms) >= claimed_misses(alarms, epsilon=epsilon, delta=1e-5) - 1e-6)
