import pickle
from dataclasses import replace

import pytest

from privshard.core.errors import BudgetError
from privshard.core.privacy import PrivacyParams
from privshard.privacy.budget import admit, admit_workspace, epsilon_limit, filter_epsilon
from privshard.privacy.plan import make_plan, spend_of


def plan_of(**changes):
    params = PrivacyParams(**{"epsilon": 3.0, "planned_retrains": 2, **changes})
    return params, make_plan(params, sample_rate=0.2, steps=40, nominal_units_per_shard=80)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_a_derived_limit_admits_exactly_the_planned_trainings(accountant):
    params, plan = plan_of(accountant=accountant)
    check = admit(epsilon_limit(params, plan))
    for times in (1, 2, 3):
        check([plan] * times)
    with pytest.raises(BudgetError) as caught:
        check([plan] * 4)
    assert f"{spend_of([plan] * 3).epsilon:.4g}" in caught.value.message
    assert f"{spend_of([plan] * 4).epsilon:.4g}" in caught.value.message
    assert caught.value.remedy
    assert pickle.loads(pickle.dumps(caught.value)).message == caught.value.message


def test_a_given_limit_is_enforced_by_the_accountant_that_calibrated():
    params, plan = plan_of(epsilon_limit=4.0)
    assert epsilon_limit(params, plan) == 4.0
    admit(4.0)([plan] * 3)
    with pytest.raises(BudgetError):
        admit(4.0)([plan] * 4)


def test_the_first_training_is_refused_where_it_does_not_fit():
    _, plan = plan_of()
    with pytest.raises(BudgetError, match=r"0 training\(s\) have spent epsilon 0 of 2"):
        admit(2.0)([plan])


def test_the_noisy_count_counts_once_against_the_limit():
    params = PrivacyParams(epsilon=3.0, planned_retrains=1)
    plan = make_plan(params, sample_rate=0.2, steps=40, nominal_units_per_shard=80, count_noise_multiplier=12.0)
    check = admit(epsilon_limit(params, plan))
    check([plan, plan])
    with pytest.raises(BudgetError):
        check([plan, plan, plan])


def test_other_plans_are_charged_at_an_order_fixed_by_the_first():
    _, plan = plan_of()
    gentle = replace(plan, noise_multiplier=10 * plan.noise_multiplier)
    limit = spend_of([plan] * 3).epsilon
    assert limit is not None
    mixed = filter_epsilon([plan, gentle, plan], limit=limit)
    assert spend_of([plan, gentle, plan]).epsilon <= mixed < limit
    nearly_equal = replace(plan, noise_multiplier=plan.noise_multiplier * (1 + 1e-12))
    assert filter_epsilon([plan, plan, nearly_equal], limit=limit) == pytest.approx(limit, rel=1e-6)
    admit(limit)([plan, gentle, plan])
    with pytest.raises(BudgetError):
        admit(limit)([plan, gentle, plan, plan, gentle])


def test_without_privacy_there_is_no_limit_and_no_way_back():
    params, public = plan_of(epsilon=None)
    _, private = plan_of()
    assert epsilon_limit(params, public) is None
    admit(None)([public, public])
    with pytest.raises(BudgetError, match="no privacy limit"):
        admit(None)([public, private])
    with pytest.raises(BudgetError):
        admit(5.0)([private, public])


@pytest.mark.parametrize("accountant", ["prv", "pld"])
def test_accountants_for_fixed_plans_refuse_a_plan_that_changes(accountant):
    params, plan = plan_of(accountant=accountant)
    gentle = replace(plan, noise_multiplier=10 * plan.noise_multiplier)
    admit(epsilon_limit(params, plan))([plan, plan, plan])
    with pytest.raises(BudgetError, match=f"accountant {accountant} holds for one plan") as caught:
        admit(1e6)([plan, gentle])
    assert "rdp" in caught.value.remedy


def test_the_limit_of_the_workspace_is_the_worst_shard():
    _, plan = plan_of()
    check = admit_workspace(spend_of([plan] * 2).epsilon)
    assert check is not None
    check({0: [plan, plan], 1: [plan], 2: []})
    with pytest.raises(BudgetError, match=r"workspace, by shard 1: .* 2 training\(s\)"):
        check({0: [plan], 1: [plan] * 3})
    assert admit_workspace(None) is None
