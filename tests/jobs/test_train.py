"""The Ray entry point finds its recipes, and the recipes are whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs import train
from privshard.api.recipe import Recipe


def test_the_digits_recipe_is_the_empty_one_with_every_key():

    path = train.RECIPES / "digits.yaml"
    assert Recipe.load(path) == Recipe()
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(Recipe().to_yaml())


@pytest.mark.parametrize("name", train.names())
def test_every_recipe_loads_and_survives_its_yaml(name, tmp_path):
    recipe = Recipe.load(train.RECIPES / f"{name}.yaml")
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "again.yaml").digest == recipe.digest


def test_the_variants_differ_from_the_sign_language_recipe_only_where_they_say():
    recipes = {
        name: Recipe.load(train.RECIPES / f"{name}.yaml") for name in train.names() if name.startswith("sign_language")
    }
    first = recipes.pop("sign_language_digits")
    changed = {name: set(first.changed_keys(recipe)) for name, recipe in recipes.items()}
    assert changed == {
        "sign_language_digits_subject": {"privacy.unit", "data.nominal_examples", "data.nominal_subjects"},
        "sign_language_digits_public": {"privacy.epsilon"},
    }


def test_a_path_is_no_name_and_later_settings_win():
    given = train.arguments(["mine.yaml", "--workspace", "w", "--set", "ray.address=none"])
    assert given == ["train", "mine.yaml", "--set", "ray.address=auto", "--workspace", "w", "--set", "ray.address=none"]
    assert Path(train.arguments(["digits"])[1]).is_file()


def test_without_a_recipe_it_says_which_there_are(capsys):
    assert train.main([]) == 2
    assert train.main(["--help"]) == 0
    assert "sign_language_digits_public" in capsys.readouterr().out


def test_what_the_command_says_is_the_jobs_status(tmp_path, capsys):
    assert train.main([str(tmp_path / "absent.yaml"), "--workspace", str(tmp_path / "w")]) == 2
    assert "absent.yaml" in capsys.readouterr().err
