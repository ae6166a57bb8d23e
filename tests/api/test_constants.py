"""Public constants: who names the classes and the numbers, and what a method does where nobody chose."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from privshard.api import constants
from privshard.api.recipe import Recipe
from privshard.api.setup import make_setup
from privshard.core.errors import InputError
from privshard.privacy.plan import make_plan


def never() -> set[str]:
    raise AssertionError("labels were read")


def test_the_example_names_its_own_constants():
    assert constants.classes_of(Recipe(), never) == tuple("0123456789")
    assert constants.nominal_units(Recipe()) == 1617
    assert constants.nominal_units(Recipe(privacy={"unit": "subject"})) == 162


def test_classes_of_the_recipe_keep_their_order(make_recipe):
    assert constants.classes_of(make_recipe(data={"classes": ["b", "a", 3]}), never) == ("b", "a", "3")


def test_under_differential_privacy_labels_are_never_read(make_recipe):
    with pytest.raises(InputError, match="it may not be read from private rows"):
        constants.classes_of(make_recipe(data={"classes": None}), never)


def test_without_it_labels_are_sorted_numbers_before_names(make_recipe):
    public = make_recipe(data={"classes": None}, privacy={"epsilon": None})
    assert constants.classes_of(public, lambda: {"10", "9", "b", "a", "100"}) == ("9", "10", "100", "a", "b")


def test_nominal_numbers_belong_to_the_unit(make_recipe):
    by_subject = make_recipe(privacy={"unit": "subject"})
    assert (constants.nominal_units(make_recipe()), constants.nominal_units(by_subject)) == (24, 6)
    assert constants.nominal_units(make_recipe(data={"nominal_examples": None})) is None


@pytest.mark.parametrize("name", ["tangent", "head"])
@pytest.mark.parametrize("epsilon", [8.0, None])
def test_every_method_has_defaults_and_the_recipe_overrides_them_key_by_key(name, epsilon):
    values = {"method": {"name": name}, "privacy": {"epsilon": epsilon}}
    default = constants.optimization(Recipe(**values, training={} if epsilon else {"optimizer": "adam"}))
    changed = constants.optimization(Recipe(**values, training={"lr": 7.0, "steps": 11, "center": False}))
    assert (changed.params.lr, changed.steps, changed.center) == (7.0, 11, False)
    assert (changed.sample_rate, changed.params.optimizer) == (default.sample_rate, default.params.optimizer)


@pytest.mark.parametrize("name", ["tangent", "head"])
def test_without_privacy_the_default_is_the_optimum_unless_steps_are_asked_for(name):
    values = {"method": {"name": name}, "privacy": {"epsilon": None}}
    assert constants.optimization(Recipe(**values)).params.optimizer == "exact"
    ridge = constants.optimization(Recipe(**values, training={"weight_decay": 0.5, "loss": "cross_entropy"}))
    assert (ridge.params.optimizer, ridge.params.weight_decay, ridge.params.loss) == ("exact", 0.5, "cross_entropy")
    for training in ({"lr": 0.1}, {"steps": 10}, {"optimizer": "sgd"}, {"average_from": 0.1}):
        assert constants.optimization(Recipe(**values, training=training)).params.optimizer != "exact"
    bounded = constants.optimization(Recipe(**values, training={"optimizer": "exact", "steps": 10}))
    assert (bounded.steps, bounded.params.optimizer) == (10, "exact")


def test_the_ridge_follows_the_number_of_classes():
    def ridge(num_classes, *, name="head", **training):
        recipe = Recipe(method={"name": name}, privacy={"epsilon": None}, training=training)
        return constants.optimization(recipe, num_classes=num_classes).params.weight_decay

    assert [ridge(num) for num in (None, 2, 10, 12, 1000)] == [0.01, 0.01, 0.01, 12**-2, 1e-4]
    assert ridge(20) == constants.public_optimization("head", num_classes=20).params.weight_decay == 20**-2
    assert ridge(20, weight_decay=0.5) == 0.5
    tangent = [ridge(num, name="tangent") for num in (None, 2, 12, 100, 1000)]
    assert tangent == [1e-3, 1e-3, 1e-3, 1e-4, 1e-5]


def test_a_head_learns_by_cross_entropy_where_the_recipe_says_that_there_are_rows_enough():
    def params(rows, num_classes=10, **values):
        data = {"path": "rows.parquet", "nominal_examples": rows}
        recipe = Recipe(
            **{"data": data, "shards": 2, "method": {"name": "head"}, "privacy": {"epsilon": None}} | values
        )
        found = constants.optimization(recipe, units_per_shard=10**6, num_classes=num_classes).params
        return found.loss, found.weight_decay

    assert params(300) == ("cross_entropy", 0.01)
    assert params(299) == params(None) == params(300, None) == ("square", 0.01)
    assert params(300, shards=3) == ("square", 0.01)
    assert [params(10**6, num) for num in (20, 1000)] == [("cross_entropy", 20**-2), ("cross_entropy", 1e-3)]
    assert params(299, training={"loss": "cross_entropy"}, num_classes=1000) == ("cross_entropy", 1e-3)
    assert params(300, training={"loss": "square"}) == ("square", 0.01)
    assert params(300, method={"name": "tangent"}) == ("square", 1e-3)
    assert params(300, compose="curvature")[0] == params(300, public={"path": "public.parquet"})[0] == "square"
    assert params(300, base={"head": "public"}, public={"path": "public.parquet", "core": False})[0] == "cross_entropy"
    assert params(300, compose="ensemble")[0] == "cross_entropy"


def test_the_optimum_is_refused_where_it_would_leak_or_does_not_exist():
    with pytest.raises(InputError, match=r"training\.optimizer.*depends on every row.*privacy\.epsilon to null"):
        constants.optimization(Recipe(training={"optimizer": "exact"}))
    with pytest.raises(InputError, match=r"training\.lr: expected null beside"):
        constants.optimization(Recipe(privacy={"epsilon": None}, training={"optimizer": "exact", "lr": 0.1}))


def test_fewer_units_than_shards_warn():
    with pytest.warns(UserWarning, match="4 for 3 examples: most shards will be empty"):
        constants.warn_about_size(Recipe(), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constants.warn_about_size(Recipe(), 4)


def test_a_column_that_the_recipe_names_must_exist(data, make_recipe):
    with pytest.raises(InputError, match="expected a column 'who' for the subject"):
        list(constants.source_rows(make_recipe(data={"subject": "who"})))
    rows = list(constants.source_rows(make_recipe(data={"subject": None, "split": None})))
    assert {(row.subject, row.split) for row in rows} == {(None, None)}


def test_the_rate_follows_the_noise_by_public_constants():
    def rate(shards=4, training=None, name="tangent", **privacy):
        recipe = Recipe(
            method={"name": name}, shards=shards, privacy={"epsilon": 1.0, **privacy}, training=training or {}
        )
        chosen = constants.optimization(recipe)
        plan = make_plan(
            recipe.privacy_params(), sample_rate=1.0, steps=chosen.steps, nominal_units_per_shard=1617 / shards
        )
        found = chosen.settled(plan, num_shards=shards)
        assert found == replace(chosen.params, lr=found.lr)  # nothing else follows it
        return found.lr, plan

    lr, plan = rate()
    assert lr == pytest.approx(0.006 * 2 * (1617 / 4) / plan.noise_multiplier)
    assert rate(max_grad_norm=0.5)[0] == pytest.approx(2 * lr)  # the same steps in units of the clipping norm
    assert rate(shards=1)[0] == pytest.approx(2 * lr)  # sqrt(S) L: 4 times the rows, half the averaging
    assert rate(name="head")[0] == pytest.approx(lr)
    assert [rate(shards=1, epsilon=1000.0, name=name)[0] for name in ("tangent", "head")] == [1.0, 10.0]
    assert rate(epsilon=None)[0] == constants.optimization(Recipe(privacy={"epsilon": None})).params.lr
    for training in ({"lr": 0.2}, {"momentum": 0.0}, {"optimizer": "adam"}):
        assert rate(training=training)[0] == training.get("lr", 0.3)


def test_many_units_take_more_and_smaller_steps_of_the_same_rows():
    def chosen(units, shards=1, training=None, name="tangent", **privacy):
        recipe = Recipe(
            method={"name": name}, shards=shards, privacy={"epsilon": 8.0, **privacy}, training=training or {}
        )
        found = constants.optimization(recipe, units_per_shard=units)
        return found.steps, found.sample_rate

    assert chosen(None) == chosen(2_000) == chosen(313, shards=5) == (30, 1.0)
    assert chosen(4_000) == (60, 0.5)
    assert chosen(4_000, shards=4) == chosen(8_000) == (120, 0.25)  # sqrt(S) L epsilon is what counts
    steps, rate = chosen(5_000)
    assert steps * rate == pytest.approx(30)
    assert chosen(5_000, epsilon=1.0) == (30, 1.0)
    assert chosen(10**9) == (300, 0.1)
    assert chosen(5_000, training={"steps": 40}) == (40, 1.0)
    assert chosen(5_000, training={"sample_rate": 0.5}) == (30, 0.5)
    assert chosen(8_000, name="head") == (120, 0.25)
    head = Recipe(method={"name": "head"}, privacy={"epsilon": 8.0}, shards=1)
    most = [constants.optimization(head, units_per_shard=units).most_lr for units in (2_000, 4_000, 8_000)]
    assert most == [10.0, 2.5, 1.0]
    assert chosen(8_000, name="lora") == (60, 1.0)


def test_the_blocks_of_a_private_tangent_move_the_further_the_less_noise_there_is():
    def scales(units, shards=1, training=None, name="tangent", **privacy):
        recipe = Recipe(
            method={"name": name}, shards=shards, privacy={"epsilon": 8.0, **privacy}, training=training or {}
        )
        return constants.optimization(recipe, units_per_shard=units).params.layer_scales

    assert scales(3_750) == scales(1_875, shards=4) == scales(10_000, epsilon=3.0) == {"blocks.*": 1.0}
    assert scales(15_000) == {"blocks.*": 2.0}
    assert [scales(units)["blocks.*"] for units in (1, 10**9)] == [0.25, 4.0]
    assert scales(15_000, training={"steps": 7, "lr": 0.1}) == {"blocks.*": 2.0}
    assert scales(15_000, training={"layer_scales": {}}) == {}
    assert scales(15_000, name="head") == scales(15_000, name="lora") == scales(None) == {}
    assert scales(15_000, epsilon=None) == {"head.*": 0.3}


def test_a_training_is_planned_with_as_many_steps_as_its_units_leave_room_for():
    classes = tuple(str(number) for number in range(10))
    found = {
        nominal: make_setup(Recipe(shards=4), classes=classes, nominal=nominal, count_noise_multiplier=None).setup.plan
        for nominal in (1_617.0, 16_000.0)
    }
    assert [(plan.steps, plan.sample_rate) for plan in found.values()] == [(30, 1.0), (120, 0.25)]
    assert found[16_000.0].expected_units == 1_000
