import math
import warnings

import pytest

from privshard.core.errors import BudgetError, InputError
from privshard.core.privacy import GaussianEvent
from privshard.privacy.accounting import calibrate_noise, epsilon, epsilon_for, steps_for


def pld_epsilon(events, delta):
    from dp_accounting import dp_event, pld

    accountant = pld.PLDAccountant()
    for event in events:
        one = dp_event.PoissonSampledDpEvent(event.sample_rate, dp_event.GaussianDpEvent(event.noise_multiplier))
        accountant.compose(one, event.steps)
    return accountant.get_epsilon(delta)


def test_mixed_events_compose_like_the_independent_accountant():
    events = [GaussianEvent(1.0, 0.05, 100), GaussianEvent(8.0, 1.0, 1), GaussianEvent(0.9, 0.02, 150)]
    exact = pld_epsilon(events, 1e-5)
    assert 0 < epsilon(events, delta=1e-5, accountant="prv") - exact < 0.02
    assert exact < epsilon(events, delta=1e-5) < 1.25 * exact


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_neither_order_nor_grouping_of_events_matters(accountant):
    a, b = GaussianEvent(1.0, 0.01, 300), GaussianEvent(9.0, 1.0, 1)
    once = epsilon([a, a, b], delta=1e-5, accountant=accountant)
    assert once == epsilon([b, GaussianEvent(1.0, 0.01, 600)], delta=1e-5, accountant=accountant)


def test_retraining_charges_of_the_renyi_filter():
    charged = [epsilon([GaussianEvent(1.0, 0.01, 1000)] * k, delta=1e-5) for k in (1, 2, 3, 5, 10)]
    assert charged == pytest.approx([2.10, 2.87, 3.51, 4.59, 6.71], abs=6e-3)


def test_nothing_spends_nothing_and_no_noise_spends_everything():
    assert epsilon([], delta=1e-5) == 0.0
    assert epsilon([GaussianEvent(1.0, 0.5, 0)], delta=1e-5) == 0.0
    for accountant in ("rdp", "prv"):
        events = [GaussianEvent(1.0, 0.5, 1), GaussianEvent(0.0, 0.5, 1)]
        assert epsilon(events, delta=1e-5, accountant=accountant) == math.inf


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_accounting_is_silent_and_finite_at_the_edges(accountant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for noise, rate, steps in ((500.0, 1.0, 1), (0.05, 0.3, 20), (0.3, 1.0, 50), (30.0, 1e-4, 1000)):
            assert 0 <= epsilon([GaussianEvent(noise, rate, steps)], delta=1e-5, accountant=accountant) < math.inf


def test_prv_never_exceeds_rdp():
    for noise, rate, steps in ((500.0, 1.0, 1), (0.3, 0.1, 30), (5.0, 0.1, 100)):
        events = [GaussianEvent(noise, rate, steps)]
        assert epsilon(events, delta=1e-5, accountant="prv") <= epsilon(events, delta=1e-5)


def test_mistakes_are_named():
    with pytest.raises(InputError, match="accountant"):
        epsilon([GaussianEvent(1.0, 0.5, 1)], delta=1e-5, accountant="gdp")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="event"):
        epsilon([GaussianEvent(1.0, 1.5, 1)], delta=1e-5)


@pytest.mark.parametrize(
    ("wanted", "rate", "steps", "accountant"),
    [
        (0.1, 1.0, 60, "rdp"),
        (1.0, 0.01, 1000, "rdp"),
        (3.0, 0.5, 60, "rdp"),
        (30.0, 0.5, 60, "rdp"),
        (3.0, 0.02, 500, "prv"),
        (8.0, 1.0, 60, "prv"),
    ],
)
def test_calibrated_noise_fits_and_nothing_smaller_does(wanted, rate, steps, accountant):
    noise = calibrate_noise(epsilon=wanted, delta=1e-5, sample_rate=rate, steps=steps, accountant=accountant)

    def spent(value):
        return epsilon([GaussianEvent(value, rate, steps)], delta=1e-5, accountant=accountant)

    assert spent(noise) <= wanted < spent(noise / (1 + 2e-4))


def test_calibration_includes_planned_retrains_and_the_noisy_count():
    count = GaussianEvent(20.0, 1.0, 1)
    common = {"delta": 1e-5, "sample_rate": 0.5, "steps": 60}
    alone = calibrate_noise(epsilon=3.0, **common)
    with_count = calibrate_noise(epsilon=3.0, extra=(count,), **common)
    planned = calibrate_noise(epsilon=3.0, repetitions=3, total_epsilon=4.0, extra=(count,), **common)
    assert alone < with_count < planned

    def spent(noise, times):
        return epsilon_for(noise_multiplier=noise, repetitions=times, extra=(count,), **common)

    assert spent(with_count, 1) <= 3.0
    assert spent(planned, 3) <= 4.0 < spent(planned / 1.0003, 3)
    assert calibrate_noise(epsilon=3.0, repetitions=3, total_epsilon=40.0, **common) == alone


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_impossible_budgets_are_refused_with_the_reason(accountant):
    common = {"delta": 1e-5, "sample_rate": 0.5, "steps": 60, "accountant": accountant}
    with pytest.raises(BudgetError, match=r"other releases.*already spend") as caught:
        calibrate_noise(epsilon=0.5, extra=(GaussianEvent(1.0, 1.0, 1),), **common)
    assert "count" in caught.value.remedy
    with pytest.raises(BudgetError, match="no noise multiplier"):
        calibrate_noise(epsilon=1e-4, **common)


def test_steps_for_is_the_last_number_of_steps_that_fits():
    common = {"noise_multiplier": 1.0, "delta": 1e-5, "sample_rate": 0.01}
    steps = steps_for(epsilon=2.0, **common)
    assert epsilon_for(steps=steps, **common) <= 2.0 < epsilon_for(steps=steps + 1, **common)
    assert steps_for(epsilon=2.0, extra=(GaussianEvent(9.0, 1.0, 1),), **common) < steps
    with pytest.raises(BudgetError, match="single step"):
        steps_for(noise_multiplier=0.3, epsilon=0.1, delta=1e-5, sample_rate=0.5)
