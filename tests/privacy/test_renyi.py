import math
import warnings

import numpy as np
import pytest
from opacus.accountants import RDPAccountant
from scipy.special import logsumexp

from privshard.core.errors import InputError
from privshard.core.privacy import GaussianEvent
from privshard.privacy.renyi import _step_divergence, best_order, renyi_epsilon, renyi_epsilon_at


def quadrature(noise: float, rate: float, order: float) -> float:
    """R(alpha) as its integral log E (1 - q + q exp((2x - 1) / 2z^2))^alpha over x ~ N(0, z^2), by a plain sum."""
    x = np.linspace(-14 * noise - 1, order + 14 * noise + 1, 400_001)
    shift, density = (2 * x - 1) / (2 * noise**2), -(x**2) / (2 * noise**2)
    far = np.logaddexp(np.log1p(-rate), np.log(rate) + shift)
    ratio = np.where(shift < 30, np.log1p(rate * np.expm1(np.minimum(shift, 30))), far)
    width = (x[1] - x[0]) / (noise * math.sqrt(2 * math.pi))
    if order * ratio.max() > 600:
        return (logsumexp(order * ratio + density) + math.log(width)) / (order - 1)
    # The ratio's mean is 1: taking it off first keeps the digits of a moment that is close to 1.
    return math.log1p(np.exp(density) @ (np.expm1(order * ratio) - order * np.expm1(ratio)) * width) / (order - 1)


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.03, 0.5, 0.97])
@pytest.mark.parametrize("noise", [0.25, 0.7, 2.0, 20.0])
def test_one_step_is_the_integral_and_never_below_it(noise, rate):
    for order in (1.05, 1.7, 2.0, 2.5, 5.3, 11.9, 16.0, 24.5, 64.0, 90.5, 256.0):
        exact = quadrature(noise, rate, order)
        ours = _step_divergence(noise, rate, order)
        assert ours >= exact * (1 - 1e-9) - 3e-12  # Opacus stops its series at terms of 1e-13
        if order < 12 or order.is_integer():
            assert ours == pytest.approx(exact, rel=1e-6, abs=3e-12)


def test_opacus_series_is_not_trusted_where_it_breaks_off():
    accountant = RDPAccountant()
    accountant.history = [(20.0, 0.5, 100)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert accountant.get_epsilon(1e-5, alphas=[64, 90.5, 128]) < 0  # the defect that the guard is for
    assert renyi_epsilon([GaussianEvent(20.0, 0.5, 100)], delta=1e-5) > 0.5


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [
        (1.0, 0.01, 1000, 1e-5),
        (3.0, 0.25, 400, 1e-6),
        (5.0, 1.0, 100, 1e-5),
        (0.3, 0.2, 50, 1e-5),
        (6.0, 0.02, 900, 1e-7),
    ],
)
def test_the_search_is_as_good_as_a_dense_grid_of_opacus(noise, rate, steps, delta):
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    grid = [1 + 1.03**i for i in range(-300, 80)] if rate == 1 else [1.01 + i / 50 for i in range(450)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense = accountant.get_epsilon(delta, alphas=sorted([*grid, *range(2, 600)]))
    ours = renyi_epsilon([GaussianEvent(noise, rate, steps)], delta=delta)
    assert ours == pytest.approx(dense, rel=2e-3)
    assert ours <= dense * (1 + 5e-4)


def test_full_batches_equal_the_closed_form():
    noise, steps, delta = 5.0, 100, 1e-5
    orders = np.exp(np.linspace(math.log(1e-3), math.log(1e4), 200_000)) + 1
    curve = orders * steps / (2 * noise**2) + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    assert renyi_epsilon([GaussianEvent(noise, 1.0, steps)], delta=delta) == pytest.approx(curve.min(), rel=1e-6)


def test_large_and_small_noise_leave_the_ladder_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert best_order([GaussianEvent(1e4, 1.0, 1)], delta=1e-5) > 512
        assert best_order([GaussianEvent(0.02, 1.0, 10)], delta=1e-5) < 1.25
        assert renyi_epsilon([GaussianEvent(1e5, 1.0, 1)], delta=1e-5) < 1e-3


def test_a_fixed_order_charges_at_least_the_best_one():
    events = [GaussianEvent(1.0, 0.01, 1000), GaussianEvent(10.0, 1.0, 1)]
    best = renyi_epsilon(events, delta=1e-5)
    assert renyi_epsilon_at(events, delta=1e-5, order=best_order(events, delta=1e-5)) == best
    assert all(renyi_epsilon_at(events, delta=1e-5, order=order) >= best for order in (1.5, 4.0, 8.0, 9.0, 30.0))


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_delta_has_to_be_a_probability(delta):
    with pytest.raises(InputError, match="delta"):
        renyi_epsilon([GaussianEvent(1.0, 1.0, 1)], delta=delta)
