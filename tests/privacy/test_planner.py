"""What-if answers are the last ones that admission does not refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from privshard.core.errors import BudgetError
from privshard.core.privacy import PrivacyParams
from privshard.privacy.budget import admit, epsilon_limit
from privshard.privacy.plan import make_plan, spend_of
from privshard.privacy.planner import noise_for_retrains, retrains_left

PARAMS = PrivacyParams(epsilon=3.0, planned_retrains=4)
PLAN = make_plan(PARAMS, sample_rate=0.2, steps=40, nominal_units_per_shard=80)
LIMIT = epsilon_limit(PARAMS, PLAN)


def count_by_asking(plans, plan, limit):
    times = 0
    while True:
        try:
            admit(limit)([*plans, *[plan] * (times + 1)])
        except BudgetError:
            return times
        times += 1


@pytest.mark.parametrize("spent", range(6))
def test_as_many_as_were_planned(spent):
    assert retrains_left([PLAN] * spent, PLAN, limit=LIMIT) == 5 - spent


@pytest.mark.parametrize("noise", [0.5, 0.9, 2.0])
def test_at_another_noise_as_many_as_the_filter_admits(noise):
    other = replace(PLAN, noise_multiplier=noise * PLAN.noise_multiplier)
    assert retrains_left([PLAN], other, limit=LIMIT) == count_by_asking([PLAN], other, LIMIT)


def test_without_privacy_any_number_and_none_that_promises():
    public = replace(PLAN, noise_multiplier=0.0)
    assert retrains_left([public], public, limit=None) is None
    assert retrains_left([public], PLAN, limit=None) == 0
    assert retrains_left([PLAN], public, limit=LIMIT) == 0


def test_the_noise_for_more_retrainings_fits_and_less_does_not():
    assert LIMIT is not None
    noise = noise_for_retrains([PLAN], PLAN, retrains=20, limit=LIMIT)
    assert noise is not None
    assert noise > PLAN.noise_multiplier
    more = [replace(PLAN, noise_multiplier=noise)] * 20
    admit(LIMIT)([PLAN, *more])
    with pytest.raises(BudgetError):
        admit(LIMIT)([PLAN, *[replace(PLAN, noise_multiplier=noise / 1.002)] * 20])
    assert noise_for_retrains([PLAN] * 5, PLAN, retrains=1, limit=spend_of([PLAN] * 3).epsilon or 0) is None
