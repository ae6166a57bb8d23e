"""The spend of a group against closed forms, the accountants of one unit, the PLD and the generic bound."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest

from privshard.core.errors import InputError
from privshard.core.privacy import GaussianEvent, MechanismPlan
from privshard.privacy.group import group_divergence, group_epsilon, group_spend
from privshard.privacy.plan import spend_of
from privshard.privacy.pld import binomial, pld_epsilon

PLAN = MechanismPlan("example", 0.1, 50, 1.0, 2.0, 10.0, 1e-5, "rdp")


def closed_form(rate, noise, order, size):
    """E over `order` independent Binomial(k, q) of exp(((sum)^2 - sum of squares) / (2 z^2)), term by term."""
    share = binomial(size, rate)
    total = 0.0
    for moves in itertools.product(range(size + 1), repeat=order):
        weight = math.prod(share[j] for j in moves)
        total += weight * math.exp((sum(moves) ** 2 - sum(j * j for j in moves)) / (2 * noise**2))
    return math.log(total) / (order - 1)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize(("rate", "noise"), [(0.01, 0.8), (0.3, 2.0), (0.9, 5.0)])
def test_the_integral_is_the_closed_form(size, order, rate, noise):
    event = GaussianEvent(noise, rate, 1)
    assert group_divergence(event, order=order, group_size=size) == pytest.approx(
        closed_form(rate, noise, order, size), rel=1e-9
    )


@pytest.mark.parametrize("order", [1.2, 2.0, 5.5, 32.0, 256.0])
@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.5, 3.0), (1.0, 4.0)])
def test_a_group_of_one_has_opacus_divergence(order, rate, noise):
    from opacus.accountants.analysis.rdp import compute_rdp

    event = GaussianEvent(noise, rate, 1)
    theirs = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=order)
    assert group_divergence(event, order=order, group_size=1) == pytest.approx(float(theirs), rel=1e-6, abs=1e-13)


def test_without_sampling_k_units_are_one_with_k_times_the_norm():
    plan = replace(PLAN, sample_rate=1.0, noise_multiplier=12.0)
    far = replace(plan, noise_multiplier=4.0)
    assert group_spend([plan], group_size=3).epsilon == pytest.approx(spend_of([far]).epsilon, rel=0.01)
    assert group_spend([plan], group_size=3).epsilon >= spend_of([far]).epsilon * (1 - 1e-9)


@pytest.mark.parametrize(("size", "rate", "noise"), [(2, 0.2, 3.0), (4, 0.05, 4.0)])
def test_renyi_is_just_above_the_pld(size, rate, noise):
    events = (GaussianEvent(noise, rate, 30),)
    pld = pld_epsilon(events, delta=1e-5, group_size=size, rounding=1e-2)
    renyi = group_epsilon(events, delta=1e-5, group_size=size)
    assert pld <= renyi <= 1.3 * pld + 0.05


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_renyi_is_just_above_the_pld_in_random_settings():
    rng = random.Random(3)
    for _ in range(12):
        size, events = rng.choice([2, 4, 7]), (GaussianEvent(rng.uniform(2, 6), rng.uniform(0.01, 0.3), 40),)
        pld = pld_epsilon(events, delta=1e-5, group_size=size, rounding=1e-3)
        assert pld <= group_epsilon(events, delta=1e-5, group_size=size) <= 1.3 * pld + 0.05


def test_it_is_below_the_generic_bound():
    """Mironov 2017, proposition 2: for groups of 2^c, order a / 2^c diverges at most 3^c times as much as order a."""
    event = GaussianEvent(4.0, 0.1, 1)
    generic = 3**2 * group_divergence(event, order=16.0, group_size=1)
    assert 0 < group_divergence(event, order=4.0, group_size=4) < generic / 2


def test_a_bigger_group_spends_more_and_one_spends_what_is_spent():
    spends = [group_spend([PLAN, PLAN], group_size=size) for size in (1, 2, 3, 10)]
    assert spends[0] == spend_of([PLAN, PLAN])
    epsilons = [spend.epsilon for spend in spends]
    assert epsilons == sorted(epsilons)
    assert epsilons[0] < epsilons[1]
    assert {spend.accountant for spend in spends} == {"rdp"}


@pytest.mark.slow
def test_pld_composes_groups_where_it_is_asked_to():
    pld = group_spend([PLAN], group_size=2, accountant="pld")
    assert pld.accountant == "pld"
    assert pld.epsilon < group_spend([PLAN], group_size=2).epsilon


@pytest.mark.parametrize("accountant", ["prv", "pld"])
def test_the_spend_says_which_accountant_composed_the_group(accountant):
    assert group_spend([replace(PLAN, accountant=accountant)], group_size=2) == group_spend([PLAN], group_size=2)


def test_noisy_counts_and_means_are_charged_to_the_group_too():
    with_more = replace(PLAN, mean_releases=1, count_noise_multiplier=20.0)
    assert group_spend([with_more], group_size=3).epsilon > group_spend([PLAN], group_size=3).epsilon


def test_no_noise_and_no_group_are_told_apart():
    assert group_spend([replace(PLAN, noise_multiplier=0.0)], group_size=2).epsilon is None
    with pytest.raises(InputError, match="group size"):
        group_spend([PLAN], group_size=0)
