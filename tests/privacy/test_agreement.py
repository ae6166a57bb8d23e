"""The three accountants against each other: the reference table, and random settings."""

from __future__ import annotations

import math
import random
import sys

import pytest

from privshard.core.errors import InputError, ResourceError
from privshard.core.privacy import GaussianEvent
from privshard.privacy.accounting import calibrate_noise, epsilon, steps_for
from privshard.privacy.pld import pld_epsilon

# rate, noise, steps, delta, then epsilon by Opacus RDP, Opacus PRV, dp-accounting PLD
REFERENCE = [
    (0.01, 1.0, 1000, 1e-5, 2.101, 1.838, 1.828),
    (0.1, 1.0, 200, 1e-5, 11.016, 9.982, 9.971),
    (0.02, 0.7, 2500, 1e-5, 15.992, 14.544, 14.533),
    (0.25, 3.0, 400, 1e-6, 9.946, 9.319, 9.309),
    (1.0, 5.0, 100, 1e-5, 10.726, 10.008, 9.997),
]


@pytest.mark.parametrize(("rate", "noise", "steps", "delta", "rdp", "prv", "pld"), REFERENCE)
def test_the_reference_table(rate, noise, steps, delta, rdp, prv, pld):
    events = [GaussianEvent(noise, rate, steps)]
    for accountant, value in (("rdp", rdp), ("prv", prv), ("pld", pld)):
        assert epsilon(events, delta=delta, accountant=accountant) == pytest.approx(value, abs=2e-3)


def random_events(rng: random.Random) -> tuple[list[GaussianEvent], float]:
    """One or two mechanisms over the range that trainings use, whose epsilon is at most 16."""
    while True:
        delta = 10 ** rng.uniform(-8, -4)
        events = [
            GaussianEvent(
                rng.uniform(0.7, 12), rng.choice([1.0, 10 ** rng.uniform(-3, 0)]), int(10 ** rng.uniform(0, 3))
            )
            for _ in range(rng.choice([1, 1, 2]))
        ]
        if epsilon(events, delta=delta) <= 16:
            return events, delta


def check_agreement(seeds):
    for seed in seeds:
        events, delta = random_events(random.Random(seed))
        rdp, prv, pld = (epsilon(events, delta=delta, accountant=name) for name in ("rdp", "prv", "pld"))
        assert abs(prv - pld) <= 0.02, (seed, events, delta, prv, pld)
        assert rdp >= pld, (seed, events, delta, rdp, pld)


@pytest.mark.parametrize("part", range(2))
def test_accountants_agree_on_ten_random_settings(part):
    check_agreement(range(5 * part, 5 * part + 5))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_accountants_agree_on_three_hundred_random_settings():
    check_agreement(range(300))


def test_pld_itself_is_not_below_the_exact_gaussian():
    """Without sampling the trade-off is known: Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m), m = sqrt(n)/z."""

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    for noise, steps in ((5.0, 100), (1.0, 1), (30.0, 400)):
        value, m = pld_epsilon((GaussianEvent(noise, 1.0, steps),), delta=1e-5), math.sqrt(steps) / noise

        def exact(e, m=m):
            return phi(m / 2 - e / m) - math.exp(e) * phi(-m / 2 - e / m)

        assert exact(value) <= 1e-5 < exact(value - 0.01)


def test_pld_calibrates_noise_and_steps_with_planned_retrains_inside():
    common = {"delta": 1e-5, "sample_rate": 0.1, "steps": 100}
    noise = calibrate_noise(epsilon=2.0, accountant="pld", repetitions=3, total_epsilon=3.0, **common)
    three = [GaussianEvent(noise, 0.1, 300)]
    assert epsilon(three, delta=1e-5, accountant="pld") <= 3.0 < epsilon(three, delta=1e-5)
    assert noise < calibrate_noise(epsilon=2.0, repetitions=3, total_epsilon=3.0, **common)
    steps = steps_for(noise_multiplier=2.0, epsilon=1.5, delta=1e-5, sample_rate=0.05, accountant="pld")
    fits = [epsilon([GaussianEvent(2.0, 0.05, n)], delta=1e-5, accountant="pld") for n in (steps, steps + 1)]
    assert fits[0] <= 1.5 < fits[1]


def test_without_the_package_the_remedy_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "dp_accounting"] + ["dp_accounting"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ResourceError, match=r"privshard\[pld\]"):
        epsilon([GaussianEvent(1.0, 0.123, 7)], delta=1e-5, accountant="pld")
    assert epsilon([GaussianEvent(1.0, 0.123, 7)], delta=1e-5) > 0


def test_nothing_spends_nothing_and_no_noise_everything():
    assert pld_epsilon((GaussianEvent(0.0, 0.5, 1),), delta=1e-5) == math.inf
    assert epsilon([], delta=1e-5, accountant="pld") == 0.0
    with pytest.raises(InputError, match="group size"):
        pld_epsilon((GaussianEvent(1.0, 0.5, 1),), delta=1e-5, group_size=0)
