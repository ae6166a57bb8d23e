"""The whole life of components that are composed by their curvature: training to removal, and what is refused."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import people, recipe_values, write_people

from privshard.api import evaluate, export, forget, influence, predict, schemas, train, verify
from privshard.api.composed import combined
from privshard.api.recipe import Recipe
from privshard.api.recipe_yaml import parse_yaml
from privshard.api.scoring import composed
from privshard.composition.curvature import Held, by_curvature
from privshard.core.errors import InputError, VerificationError
from privshard.store.tensors import load_tensors, save_tensors
from privshard.store.workspace import Workspace
from privshard.training.shard import Trained

EXACT = {"optimizer": "exact", "steps": 2000, "weight_decay": 1.0, "center": False}
CURVED = {
    "method": {"name": "head"},
    "privacy": {"epsilon": None},
    "training": EXACT,
    "shards": 3,
    "compose": {"rule": "curvature", "rank": 250},
    "insecure_seed": 1,
}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("curved")
    recipe = Recipe(**recipe_values(write_people(home / "people.parquet"), **CURVED))
    train(recipe, workspace=str(home / "workspace"))
    return home / "workspace"


@pytest.fixture
def curved(trained_once, workspace) -> str:
    """A copy of a workspace whose keys are a function of its seed."""
    shutil.copytree(trained_once, workspace)
    return workspace


def displacement(workspace: str) -> dict[str, np.ndarray]:
    """What the current model is displaced by."""
    with Workspace.open(workspace) as ws:
        model = ws.ledger.current_model().composition
        return combined(ws, model.averaged, combine=model.combine)


def by_hand(workspace: str, components) -> dict[str, np.ndarray]:
    """The composition of some of the components, from their files alone."""
    with Workspace.open(workspace) as ws:
        loaded = {name: Held(ws.load_component(name)[1]) for name in components}
        around = {name: Held(ws.load_curvature(name)) for name in components}
    shapes = {name: array.shape for name, array in next(iter(loaded.values())).arrays.items()}
    return by_curvature(loaded, around, dict.fromkeys(components, 1 / len(components)), shapes=shapes)


def in_torch(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def files_of(workspace: str, component: str) -> list[str]:
    return sorted(str(path.relative_to(workspace)) for path in Path(workspace).rglob(f"{component}*"))


def test_full_curvatures_compose_to_what_one_shard_learns_from_everybody(make_recipe, curved, tmp_path):
    train(make_recipe(**{**CURVED, "shards": 1, "compose": "average"}), workspace=str(tmp_path / "together"))
    found, wanted = displacement(curved), displacement(str(tmp_path / "together"))
    with Workspace.open(curved) as ws:
        average = combined(ws, ws.ledger.current_model().composition.averaged, combine="average")
    for name, array in wanted.items():  # as exact as the shards' own optima are
        assert np.linalg.norm(found[name] - array) < 0.02 * np.linalg.norm(array)
        assert np.linalg.norm(average[name] - array) > 0.1 * np.linalg.norm(array)
    metrics, together = evaluate(curved)["metrics"], evaluate(str(tmp_path / "together"))["metrics"]
    assert metrics["negative_log_likelihood"] == pytest.approx(together["negative_log_likelihood"], rel=1e-2)
    assert "averaging_error" not in metrics


def test_it_predicts_exports_and_explains_what_it_composed(curved, tmp_path):
    image = next(iter(people()))["image"]["bytes"]
    path, out = tmp_path / "digit.png", tmp_path / "model.pt2"
    path.write_bytes(image)
    (row,) = predict(curved, [str(path)])["predictions"]
    export(curved, out=str(out))
    from privshard.api.setup import Setup
    from privshard.models.base import load_base

    with Workspace.open(curved) as ws:
        base = load_base(Setup.load(ws).base)
        live = ws.ledger.current_model().composition.components
    pixels = base.transform(Image.open(io.BytesIO(image)).convert("RGB"))[None]
    model = base.view.model
    with torch.no_grad():
        for name, array in displacement(curved).items():
            model.get_parameter(name).add_(torch.from_numpy(array))
        plain = torch.softmax(model(pixels).double(), dim=1)[0].tolist()
    assert list(row["probabilities"].values()) == pytest.approx(plain, abs=1e-4)
    exported = torch.export.load(io.BytesIO(out.read_bytes())).module()(pixels)
    assert torch.softmax(exported.double(), dim=1)[0].tolist() == pytest.approx(plain, abs=1e-4)
    report = influence(curved)
    jsonschema.validate(report, schemas.load("influence"))
    assert "composed by their curvature" in report["note"]
    dropped = {item["id"]: item["leave_one_out"]["accuracy"] for item in report["components"]}
    assert dropped.keys() == set(live)
    forgotten = forget(curved, subject="person-00", mode="drop")
    (gone,) = [item["component"] for item in forgotten["plan"] if item["action"] == "drop"]
    assert evaluate(curved)["metrics"]["accuracy"] == dropped[gone]


def test_a_drop_is_the_composition_of_the_others_and_takes_the_curvature_along(curved):
    with Workspace.open(curved) as ws:
        before = ws.ledger.current_model().composition.components
    wanted = {name: by_hand(curved, [other for other in before if other != name]) for name in before}
    result = forget(curved, subject="person-00", mode="drop")
    (gone,) = [item["component"] for item in result["plan"] if item["action"] == "drop"]
    found = displacement(curved)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in wanted[gone].items()
    }
    assert files_of(curved, gone) == []
    assert verify(curved)["ok"]


def test_a_seeded_retraining_is_bit_for_bit_a_training_without_the_subject(make_recipe, curved, tmp_path):
    with Workspace.open(curved) as ws:
        before = set(ws.ledger.current_model().composition.components)
    result = forget(curved, subject="person-00", mode="retrain")
    jsonschema.validate(result, schemas.load("forget"))
    assert result["receipt"]["guarantee"] == "exact_retrain_seeded"
    assert result["metrics_after"] == evaluate(curved)["metrics"]
    others = write_people(tmp_path / "others.parquet", [row for row in people() if row["subject"] != "person-00"])
    clean = str(tmp_path / "clean")
    train(make_recipe(others, **CURVED), workspace=clean)
    assert {name: array.tobytes() for name, array in displacement(curved).items()} == {
        name: array.tobytes() for name, array in displacement(clean).items()
    }
    with Workspace.open(curved) as ws:
        (gone,) = before - set(ws.ledger.current_model().composition.components)
    assert files_of(curved, gone) == []
    assert verify(curved)["ok"]


def test_trials_and_tuning_compose_as_a_workspace_does(curved):
    with Workspace.open(curved) as ws:
        ids = ws.ledger.current_model().composition.components
        files = [(ws.load_component(name)[1], ws.load_curvature(name)) for name in ids]
    trained = [
        Trained(tensors=in_torch(tensors), train_s=0.0, parameters={}, curvature=in_torch(around))
        for tensors, around in files
    ]
    (found,) = composed(trained, rule="curvature", device="cpu")
    assert {name: tensor.numpy().tobytes() for name, tensor in found.items()} == {
        name: array.tobytes() for name, array in displacement(curved).items()
    }


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "Expected an object curvature/"),
        ("changed", "expected curvature of digest"),
        ("cut", "Expected a whole safetensors"),
    ],
)
def test_verify_finds_a_damaged_curvature(curved, damage, words):
    with Workspace.open(curved) as ws:
        component = ws.ledger.current_model().composition.components[0]
        path = ws.curvature_path(component)
        if damage == "missing":
            ws.objects.delete(path)
        elif damage == "cut":
            ws.objects.write(path, ws.objects.read(path)[:-8])
        else:
            arrays, metadata = load_tensors(ws.objects, path)
            changed = {**arrays, "factor/head.bias": arrays["factor/head.bias"] * 1.001}
            save_tensors(ws.objects, path, changed, metadata)
    report = verify(curved)
    assert not report["ok"]
    wrong = {check["name"]: check["detail"] for check in report["checks"] if not check["ok"]}
    assert words in wrong["components"]
    if damage == "missing":
        with pytest.raises(VerificationError, match="expected its curvature beside it"):
            displacement(curved)


def test_a_curvature_that_no_model_uses_is_left_over(curved):
    with Workspace.open(curved) as ws:
        path = ws.curvature_path(ws.ledger.current_model().composition.components[0])
        ws.objects.write(path.replace("curvature/", "curvature/f"), ws.objects.read(path))
    (wrong,) = [check for check in verify(curved)["checks"] if not check["ok"]]
    assert wrong["name"] == "leftover components"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"epsilon": 8.0}, "training": {"optimizer": None}}, "no budget is spent for it"),
        ({"training": {"optimizer": "adam", "center": None}}, "components at the optimum"),
        ({"method": {"name": "bitfit"}, "training": {"optimizer": None}}, "components at the optimum"),
    ],
)
def test_what_has_no_such_curvature_is_refused_before_anything_is_read(make_recipe, workspace, changes, words):
    with pytest.raises(InputError, match=words):
        train(make_recipe(**{**CURVED, **changes}), workspace=workspace)
    assert not Path(workspace).exists()


def test_the_rule_is_a_word_or_a_section():
    assert Recipe(compose="curvature").compose.rule == "curvature"
    assert Recipe.load(overrides=["compose.rule=curvature", "compose.rank=3"]).compose.rank == 3
    assert Recipe().model_dump()["compose"] == "average"
    assert Recipe(compose={"rule": "ensemble"}).digest == Recipe(compose="ensemble").digest
    stored = Recipe(compose={"rule": "curvature", "rank": 3}).to_yaml()
    assert Recipe(**parse_yaml(stored, source="here")).compose.rank == 3
    with pytest.raises(InputError, match=r"compose.rank: expected null beside compose.rule average"):
        Recipe(compose={"rank": 3})
    with pytest.raises(InputError, match='expected average, ensemble or curvature, got "median"'):
        Recipe(compose="median")
