"""There is no way to ask for what would break the guarantee, and whoever tries is told why."""

from __future__ import annotations

import math
import warnings

import pytest

from privshard.api.constants import warn_about_size
from privshard.api.recipe import Recipe
from privshard.api.recipe_refusals import REFUSED
from privshard.core.errors import InputError
from privshard.core.privacy import GaussianEvent, MechanismPlan, PrivacyParams
from privshard.privacy.accounting import epsilon
from privshard.privacy.plan import composition_spend, make_plan, spend_of

PLAN = MechanismPlan("example", 0.5, 10, 1.0, 2.0, 10.0, 1e-5, "rdp")


@pytest.mark.parametrize(
    ("values", "key", "reason"),
    [
        ({"training": {"sampler": "shuffle"}}, "training.sampler", "Poisson sampling"),
        ({"training": {"batch_size": 64}}, "training.batch_size", "Poisson sampling"),
        ({"training": {"epochs": 3}}, "training.epochs", "Poisson sampling"),
        ({"training": {"shuffle": True}}, "training.shuffle", "Poisson sampling"),
        ({"training": {"class_weights": [1, 2]}}, "training.class_weights", "same public sampling rate"),
        ({"data": {"sample_weights": "w"}}, "data.sample_weights", "same public sampling rate"),
        ({"partition": "balanced"}, "partition", "parallel composition fails"),
        ({"data": {"partition": "clustered"}}, "data.partition", "parallel composition fails"),
        ({"data": {"stratify": "label"}}, "data.stratify", "parallel composition fails"),
        ({"privacy": {"noise_multiplier": -1.0}}, "privacy.noise_multiplier", "calibrated from privacy.epsilon"),
        ({"privacy": {"sampling": "weighted"}}, "privacy.sampling", "Poisson sampling"),
        ({"privacy": {"adjacency": "replace_one"}}, "privacy.adjacency", "only one that is accounted"),
        ({"training": {"normalizer": 64}}, "training.normalizer", "public constants"),
    ],
)
def test_recipes_that_ask_are_told_why_not(values, key, reason):
    with pytest.raises(InputError) as caught:
        Recipe(**values)
    assert caught.value.exit_code == 2
    assert f"{key}: refused, because" in caught.value.message
    assert reason in caught.value.message
    assert caught.value.remedy == f"Leave {key} out."


def test_overrides_are_refused_alike():
    with pytest.raises(InputError, match=r"training\.sampler: refused"):
        Recipe.load(overrides=["training.sampler=shuffle"])


def test_no_key_of_the_recipe_is_called_like_a_refused_one():
    def keys(model):
        for name, field in model.model_fields.items():
            yield name
            if hasattr(field.annotation, "model_fields"):
                yield from keys(field.annotation)

    assert not set(keys(Recipe)) & set(REFUSED)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_delta_that_is_none_is_refused(delta):
    for ask in (
        lambda: PrivacyParams(delta=delta),
        lambda: Recipe(privacy={"delta": delta}),
        lambda: MechanismPlan("example", 0.5, 10, 1.0, 2.0, 10.0, delta, "rdp"),
        lambda: epsilon([GaussianEvent(1.0, 0.5, 1)], delta=delta),
    ):
        with pytest.raises(InputError, match="delta"):
            ask()


def test_a_delta_that_would_allow_to_publish_somebody_is_warned_about():
    with pytest.warns(UserWarning, match=r"not below one over the 100 examples"):
        make_plan(PrivacyParams(delta=0.01), sample_rate=0.5, steps=1, nominal_units_per_shard=100)
    recipe = Recipe(privacy={"delta": 0.01}, shards=4)
    with pytest.warns(UserWarning, match=r"not below one over the 200 examples of all shards"):
        warn_about_size(recipe, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_size(Recipe(shards=4), 200)
        warn_about_size(Recipe(privacy={"delta": 0.01, "epsilon": None}, shards=4), 200)


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf, -math.inf])
def test_noise_that_is_none_is_refused(noise):
    with pytest.raises(InputError, match="noise_multiplier"):
        MechanismPlan("example", 0.5, 10, 1.0, noise, 10.0, 1e-5, "rdp")
    with pytest.raises(InputError, match="count noise"):
        MechanismPlan("example", 0.5, 10, 1.0, 1.0, 10.0, 1e-5, "rdp", count_noise_multiplier=noise)
    if not noise > 0:
        with pytest.raises(InputError, match="event"):
            epsilon([GaussianEvent(noise, 0.5, 1)], delta=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": "shuffle"}, "sampling: expected poisson, got 'shuffle'"),
        ({"sampling": "weighted"}, "sampling: expected poisson"),
        ({"adjacency": "replace_one"}, "adjacency: expected add_remove"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"max_grad_norm": math.nan}, "max_grad_norm"),
    ],
)
def test_plans_couple_the_one_mechanism_that_is_accounted(changes, message):
    with pytest.raises(InputError, match=message):
        MechanismPlan(**{**vars(PLAN), **changes})


def test_only_a_keyed_hash_composes_in_parallel():
    spends = {0: spend_of([PLAN]), 1: spend_of([PLAN])}
    with pytest.raises(InputError, match="expected keyed_hash, got 'balanced'") as caught:
        composition_spend(spends, partition="balanced")  # pyright: ignore[reportArgumentType]
    assert "add up" in caught.value.remedy
