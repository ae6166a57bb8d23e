from dataclasses import replace

import pytest

from privshard.core.privacy import PrivacyParams
from privshard.privacy.plan import make_plan, spend_of
from privshard.privacy.statement import _upper, group_sentence, statement

PLAN = make_plan(
    PrivacyParams(epsilon=3.0, unit="subject"),
    sample_rate=0.5,
    steps=60,
    nominal_units_per_shard=80,
    count_noise_multiplier=30.0,
)


def test_the_statement_names_unit_mechanism_scope_and_gaps():
    text = statement(PLAN, spend_of([PLAN]), num_shards=8, limit=4.5)
    for part in (
        "epsilon 3 and delta 1e-05",
        "one subject with all of its examples",
        "adding or removing one subject",
        "rdp accountant",
        "8 shard(s)",
        "60 step(s)",
        "probability 0.5 (Poisson sampling)",
        f"{PLAN.noise_multiplier:.4g}, is divided by the public constant 40",
        "released once, with Gaussian noise of standard deviation 30",
        "all components together and of each by itself",
        "no shard will spend more than epsilon 4.5",
    ):
        assert part in text
    gaps = text[text.index("Not covered:") :]
    for part in ("hyper-parameters", "partition key", "held-out rows", "influence", "when and for how long"):
        assert part in gaps


def test_examples_are_not_called_people():
    plan = replace(PLAN, unit="example", count_noise_multiplier=None)
    text = statement(plan, spend_of([plan]), num_shards=1, limit=None)
    assert "for one example" in text
    assert "A person with several examples is protected less" in text
    assert "released once" not in text
    assert "in future" not in text


@pytest.mark.parametrize("noise", [0.0, PLAN.noise_multiplier])
def test_no_privacy_is_said_first_and_nothing_is_promised(noise):
    plan = replace(PLAN, noise_multiplier=noise)
    text = statement(plan, replace(spend_of([PLAN]), epsilon=None), num_shards=8, limit=None)
    assert text.startswith("There is no differential privacy")
    assert "epsilon" not in text
    assert "Covered" not in text


@pytest.mark.parametrize("value", [3.0, 2.99951, 0.123441, 12.3451, 99999.0, 9.99951, 0.00012344999])
def test_shown_bounds_are_rounded_up(value):
    assert value <= float(_upper(value)) <= value * 1.0011


def test_groups_and_the_grid_are_said_in_words():
    assert group_sentence({4: 9.5, 2: 3.0001}) == (
        "For a subject with 2 examples epsilon is 3.001, with 4 examples 9.5 (group privacy, at the same delta)."
    )
    plain = statement(PLAN, spend_of([PLAN]), num_shards=8, limit=None)
    hard = statement(replace(PLAN, hardening="grid"), spend_of([PLAN]), num_shards=8, limit=None)
    assert "public grid" in hard
    assert "public grid" not in plain
