import warnings
from dataclasses import replace

import numpy as np
import pytest

from privshard.core.errors import BudgetError, InputError
from privshard.core.privacy import GaussianEvent, PrivacyParams, PrivacySpend
from privshard.privacy.accounting import epsilon
from privshard.privacy.plan import composition_spend, history_events, make_plan, noisy_count, spend_of
from privshard.privacy.stream import ChaChaStream, insecure_key

PARAMS = PrivacyParams(epsilon=3.0, planned_retrains=2, epsilon_limit=5.0, unit="subject", max_grad_norm=0.5)


def test_a_plan_is_calibrated_to_one_training_and_to_all_of_them():
    plan = make_plan(PARAMS, sample_rate=0.5, steps=60, nominal_units_per_shard=80)
    one, three = (epsilon(plan.events * k, delta=1e-5) for k in (1, 3))
    assert one <= 3.0
    assert 4.99 < three <= 5.0
    assert (plan.expected_units, plan.max_grad_norm, plan.unit, plan.sample_rate) == (40.0, 0.5, "subject", 0.5)
    loose = make_plan(replace(PARAMS, epsilon_limit=None), sample_rate=0.5, steps=60, nominal_units_per_shard=80)
    assert 2.999 < epsilon(loose.events, delta=1e-5) <= 3.0


def test_the_noisy_count_is_charged_once_in_a_history():
    plan = make_plan(PARAMS, sample_rate=0.5, steps=60, nominal_units_per_shard=80, count_noise_multiplier=15.0)
    assert history_events([plan] * 3) == (*plan.events * 3, GaussianEvent(15.0, 1.0, 1))
    assert spend_of([plan]).epsilon == epsilon([*plan.events, *plan.count_events], delta=1e-5)
    assert spend_of([plan] * 3).epsilon <= 5.0
    assert len(history_events([plan, replace(plan, count_noise_multiplier=10.0)])) == 4


def test_spend_names_what_it_bounds():
    plan = make_plan(PARAMS, sample_rate=0.5, steps=60, nominal_units_per_shard=80)
    spend = spend_of([plan])
    assert (spend.delta, spend.unit, spend.accountant, spend.adjacency) == (1e-5, "subject", "rdp", "add_remove")


def test_no_epsilon_means_no_noise_and_no_spend():
    plan = make_plan(PrivacyParams(epsilon=None), sample_rate=0.5, steps=6, nominal_units_per_shard=80)
    assert not plan.private
    assert spend_of([plan]).epsilon is None
    private = make_plan(PrivacyParams(), sample_rate=0.5, steps=6, nominal_units_per_shard=80)
    assert spend_of([private, plan]).epsilon is None


def test_a_large_delta_warns():
    with pytest.warns(UserWarning, match="publish one of them outright"):
        make_plan(PrivacyParams(delta=0.02), sample_rate=0.5, steps=6, nominal_units_per_shard=80)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_plan(PrivacyParams(delta=0.01), sample_rate=0.5, steps=6, nominal_units_per_shard=80)


def test_impossible_and_senseless_plans_are_refused():
    with pytest.raises(BudgetError, match="noisy count"):
        make_plan(PARAMS, sample_rate=0.5, steps=60, nominal_units_per_shard=80, count_noise_multiplier=0.5)
    with pytest.raises(InputError, match="units a shard"):
        make_plan(PARAMS, sample_rate=0.5, steps=60, nominal_units_per_shard=0)


def test_histories_of_different_kinds_do_not_compose():
    plan = make_plan(PARAMS, sample_rate=0.5, steps=60, nominal_units_per_shard=80)
    with pytest.raises(InputError, match="one unit"):
        spend_of([plan, replace(plan, unit="example")])
    with pytest.raises(InputError, match="none at all"):
        spend_of([])


SPENDS = {0: PrivacySpend(1.5, 1e-5, "subject", "rdp"), 1: PrivacySpend(2.5, 1e-5, "subject", "rdp")}


def test_disjoint_shards_release_the_largest_spend():
    assert composition_spend(SPENDS, partition="keyed_hash") == SPENDS[1]


def test_one_shard_without_privacy_voids_the_composition():
    voided = composition_spend({**SPENDS, 2: replace(SPENDS[0], epsilon=None)}, partition="keyed_hash")
    assert voided.epsilon is None


@pytest.mark.parametrize(
    "change", [{"unit": "example"}, {"delta": 1e-6}, {"accountant": "prv"}, {"adjacency": "other"}]
)
def test_shards_that_promise_different_things_are_not_compared(change):
    with pytest.raises(InputError, match="shards of one composition"):
        composition_spend({**SPENDS, 2: replace(SPENDS[0], **change)}, partition="keyed_hash")


def test_parallel_composition_needs_the_keyed_partition():
    with pytest.raises(InputError, match="keyed_hash") as caught:
        composition_spend(SPENDS, partition="balanced")  # pyright: ignore[reportArgumentType]
    assert "add up" in caught.value.remedy


def test_the_noisy_count_is_gaussian_whole_and_positive():
    stream = ChaChaStream(insecure_key(0, shard=0, attempt=0), purpose="count")
    counts = np.array([noisy_count(1000, noise_multiplier=20.0, stream=stream) for _ in range(2000)])
    assert (counts == counts.round()).all()
    assert abs(counts.mean() - 1000) < 5 * 20 / 2000**0.5
    assert abs(counts.std() / 20 - 1) < 5 / 4000**0.5
    assert min(noisy_count(0, noise_multiplier=20.0, stream=stream) for _ in range(50)) == 1.0
    with pytest.raises(InputError, match="positive"):
        noisy_count(5, noise_multiplier=0.0, stream=stream)
