"""Tuning: what is compared, on which rows, and what is refused."""

from __future__ import annotations

import jsonschema
import pytest

from privshard.api import constants, schemas, tune, tuning
from privshard.core.errors import InputError
from privshard.data.examples import SourceRow
from privshard.training import shard


def test_settings_are_compared_on_train_rows_alone(make_recipe, monkeypatch):
    recipe = make_recipe(privacy={"epsilon": None}, method={"name": "head"}, shards=2)
    seen = []
    right = tuning._Bench.right
    monkeypatch.setattr(tuning._Bench, "right", lambda self, *given: seen.append(self._rows) or right(self, *given))
    found = tune(recipe, grid={"training.weight_decay": [1e-3, 1e9]}, folds=2)
    jsonschema.validate(found, schemas.load("tune"))
    assert not found["private"]
    assert "does not cover it" in found["statement"]
    assert [item["settings"] for item in found["candidates"]] == [
        {"training.weight_decay": 1e-3},
        {"training.weight_decay": 1e9},
    ]
    assert found["best"] == {"training.weight_decay": 1e-3}  # the other one learns nothing
    train = [row for row in constants.source_rows(recipe) if row.split != "eval"]
    assert {row.image for rows in seen for row in rows} == {row.image for row in train}
    assert found["num_rows"] == len(train)


def test_a_private_recipe_is_compared_with_its_noise(make_recipe):
    recipe = make_recipe(method={"name": "head"}, shards=1)
    progress = []
    found = tune(recipe, grid={"training.lr": [0.1]}, folds=2, on_progress=progress.append)
    assert found["best"] == {"training.lr": 0.1}
    assert (progress[-1].done, progress[-1].total) == (2, 2)
    assert {news.stage for news in progress} == {"encode", "tune"}


@pytest.mark.parametrize(("name", "epsilon"), [("tangent", 8.0), ("head", 500.0), ("head", None)])
def test_shards_learn_as_the_recipes_own_training_has_them(make_recipe, monkeypatch, name, epsilon):
    recipe = make_recipe(method={"name": name}, shards=1, privacy={"epsilon": epsilon})
    seen = []
    plain = shard.train_shard
    monkeypatch.setattr(shard, "train_shard", lambda *given, **named: seen.append(named) or plain(*given, **named))
    tune(recipe, grid={"training.average_from": [0.5]} if epsilon else {"training.loss": ["square"]}, folds=2)
    training = {"average_from": 0.5} if epsilon else {"loss": "square"}
    own = recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})
    chosen = constants.optimization(own, units_per_shard=constants.nominal_units(recipe), num_classes=10)
    assert [named["params"] for named in seen] == [chosen.settled(named["plan"], num_shards=1) for named in seen]
    assert {named["plan"].steps for named in seen} == {chosen.steps}


def test_what_is_no_optimization_is_refused(make_recipe):
    with pytest.raises(InputError, match=r"tune: expected keys of the optimization.*got privacy.epsilon"):
        tune(make_recipe(), grid={"privacy.epsilon": [1.0, 8.0]})
    with pytest.raises(InputError, match="at most 64 combinations, got 65"):
        tune(make_recipe(), grid={"training.lr": [0.1] * 65})
    with pytest.raises(InputError, match=r"training\.lr: expected a number above 0"):
        tune(make_recipe(), grid={"training.lr": [-1.0]})
    with pytest.raises(InputError, match="augmentations: expected 0 in a tuning, got 4"):
        tune(make_recipe(), grid={"training.augmentations": [0, 4]})
    with pytest.raises(InputError, match="folds: expected 2 or more, got 1"):
        tune(make_recipe(), folds=1)


def test_every_fold_has_as_many_subjects():
    rows = [
        SourceRow(image=b"%d" % (row % 7), label="0", subject=f"s{row % 7}", source="x", row=row) for row in range(14)
    ]
    bench = tuning._Bench(rows, 7)
    assert len(bench) == 7  # identical rows of one subject count once
    assert sorted(bench._fold) == list(range(7))
    with pytest.raises(InputError, match="folds: expected at least 8 train subjects, one for each fold, got 7"):
        tuning._Bench(rows, 8)
