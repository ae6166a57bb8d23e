"""GIFT end to end on a real network: DeiT-Tiny, subjects as the unit, differential privacy, removal, merging."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_digits import recipe_values, write_people

from privshard.api import forget, gift, train, verify
from privshard.api.recipe import Recipe
from privshard.store.workspace import Workspace


@pytest.fixture
def weights() -> str:
    home = os.environ.get("PRIVSHARD_TEST_DATA")
    if home is None:
        pytest.skip("PRIVSHARD_TEST_DATA is not set: the weights of DeiT-Tiny are not at hand")
    path = Path(home) / "weights" / "deit_tiny_patch16_224.safetensors"
    assert path.is_file(), f"PRIVSHARD_TEST_DATA is set, but {path} is missing"
    return str(path)


@pytest.mark.slow
def test_a_life_of_gift_components_on_deit_tiny(tmp_path, weights):
    recipe = Recipe(
        **recipe_values(
            write_people(tmp_path / "people.parquet"),
            base={"model": "deit_tiny_patch16_224", "weights": weights},
            method={"name": "gift"},
            privacy={"epsilon": 8.0, "unit": "subject", "delta": 1e-3},
            training={"steps": 2, "sample_rate": 1.0, "lr": 0.1},
            insecure_seed=1,
        )
    )
    w = str(tmp_path / "w")
    trained = train(recipe, workspace=w)
    assert trained["privacy"]["unit"] == "subject"
    assert trained["privacy"]["epsilon"] == pytest.approx(8.0, abs=0.1)
    assert forget(w, subject="person-00", mode="retrain")["status"] == "done"
    assert verify(w)["ok"]
    with Workspace.open(w) as ws:
        for component in ws.ledger.current_model().composition.components:
            parameters = ws.load_parameters(component)
            assert sum(array.size for array in parameters.values()) == 2 * 192 * 16
    merged = gift.merge(w, out=str(tmp_path / "m.safetensors"))
    assert merged["num_changed"] == 12 + 2
    assert merged["max_logit_difference"] <= 1e-5
    model = timm.create_model(**merged["loads_into"]["arguments"])
    model.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)
    back = gift.unmerge(str(tmp_path / "m.safetensors"), source=w, out=str(tmp_path / "b.safetensors"))
    assert back["exact"]
    real = load_file(weights)
    assert all(torch.equal(value, real[name]) for name, value in load_file(back["out"]).items() if name[:5] != "head.")
