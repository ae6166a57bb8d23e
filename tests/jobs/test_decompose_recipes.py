"""The recipes of decompositions are whole."""

from __future__ import annotations

import pytest
import yaml

from jobs.train import RECIPES
from privshard.api import DecomposeRecipe

FOLDER = RECIPES / "decompose"


def test_the_digits_recipe_is_the_empty_one_with_every_key():
    path = FOLDER / "digits.yaml"
    assert DecomposeRecipe.load(path) == DecomposeRecipe()
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(DecomposeRecipe().to_yaml())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_its_yaml(path, tmp_path):
    recipe = DecomposeRecipe.load(path)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert DecomposeRecipe.load(tmp_path / "again.yaml").digest == recipe.digest
