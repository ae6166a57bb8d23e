"""The whole life of components that are not linear in their displacement: training to removal, in both compositions."""

from __future__ import annotations

import copy
import io

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import people

from privshard.api import evaluate, forget, influence, predict, schemas, train, verify
from privshard.api.setup import Setup
from privshard.core.model import Composition
from privshard.data.images import image_batches
from privshard.data.shards import read_partition
from privshard.models.base import load_base
from privshard.store.workspace import Workspace

METHODS = {
    "full": {"name": "full", "blocks": 1},
    "lora": {"name": "lora", "rank": 2},
    "bitfit": {"name": "bitfit"},
    "prompts": {"name": "prompts", "tokens": 2},
    "gift": {"name": "gift", "rank": 2},
    "paca": {"name": "gift", "generator": "paca", "rank": 2, "clusters": 3, "layers": ["attn.proj"]},
}
STRONG = {"steps": 4, "sample_rate": 1.0, "lr": 0.05, "optimizer": "adam", "average_from": 1.0}


def run_by_hand(workspace: str, weights: dict[str, float], *, ensemble: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits of held-out rows: the plain model with component files added to its weights by hand."""
    with Workspace.open(workspace) as ws:
        setup = Setup.load(ws)
        rows = read_partition(ws.objects, ws.eval_dir())
        base = load_base(setup.base)
        (images,) = image_batches(rows.images, transform=base.transform, batch_size=len(rows))
        labels = np.array([setup.classes.index(label) for label in rows.labels])
        loaded = {name: ws.load_component(name)[1] for name in weights}

        def logits(mix: dict[str, float]) -> np.ndarray:
            model = copy.deepcopy(base.view.model)
            for name, weight in mix.items():
                for parameter, value in loaded[name].items():
                    model.get_parameter(parameter).data += weight * torch.from_numpy(np.array(value))
            with torch.no_grad():
                return model(images).numpy()

        if not ensemble:
            return logits(weights), labels
        return sum(weight * logits({name: 1.0}) for name, weight in weights.items()), labels


@pytest.mark.parametrize(
    ("name", "epsilon"),
    [("lora", 8.0), ("prompts", 8.0), ("full", None), ("bitfit", None), ("gift", 8.0), ("paca", 8.0)],
)
def test_components_of_every_method_live_through_everything(make_recipe, workspace, tmp_path, name, epsilon):
    recipe = make_recipe(method=METHODS[name], privacy={"epsilon": epsilon}, insecure_seed=1, training=STRONG)
    trained = train(recipe, workspace=workspace)
    jsonschema.validate(trained, schemas.load("train"))
    error = trained["metrics"]["averaging_error"]
    assert error["mean_logit_difference"] > 0
    assert "approximates" in error["note"]
    assert trained["privacy"]["epsilon"] == (None if epsilon is None else pytest.approx(8.0, abs=0.1))
    report = influence(workspace)
    jsonschema.validate(report, schemas.load("influence"))
    assert "averaged models" in report["note"]
    row = next(iter(people()))
    path = tmp_path / "digit.png"
    Image.open(io.BytesIO(row["image"]["bytes"])).save(path)
    assert sum(predict(workspace, [str(path)])["predictions"][0]["probabilities"].values()) == pytest.approx(1.0)
    retrained = forget(workspace, subject="person-00", mode="retrain")
    jsonschema.validate(retrained, schemas.load("forget"))
    assert retrained["status"] == "done"
    assert retrained["metrics_after"] == evaluate(workspace)["metrics"]
    assert verify(workspace)["ok"]
    dropped = forget(workspace, subject="person-01", mode="drop")
    assert dropped["status"] == "done"
    found = evaluate(workspace)
    jsonschema.validate(found, schemas.load("evaluate"))
    assert verify(workspace)["ok"]


@pytest.mark.parametrize(
    ("name", "compose"), [("full", "average"), ("lora", "average"), ("bitfit", "ensemble"), ("gift", "average")]
)
def test_a_composition_is_the_plain_models_that_its_components_say(make_recipe, workspace, name, compose):
    recipe = make_recipe(method=METHODS[name], compose=compose, insecure_seed=1, shards=3, training=STRONG)
    train(recipe, workspace=workspace)
    with Workspace.open(workspace) as ws:
        composition = ws.ledger.current_model().composition
    assert composition.combine == compose
    logits, labels = run_by_hand(workspace, dict(composition.weights), ensemble=compose == "ensemble")
    found = evaluate(workspace)["metrics"]
    assert found["accuracy"] == np.mean(logits.argmax(1) == labels)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert found["negative_log_likelihood"] == pytest.approx(loss, rel=1e-4)
    other, _ = run_by_hand(workspace, dict(composition.weights), ensemble=compose != "ensemble")
    assert np.abs(other - logits).max() > 1e-4
    if compose == "average":
        error = found["averaging_error"]
        assert error["mean_logit_difference"] == pytest.approx(np.linalg.norm(other - logits, axis=1).mean(), rel=1e-3)
        assert error["ensemble_accuracy"] == np.mean(other.argmax(1) == labels)
    else:
        assert "averaging_error" not in found
    effects = {item["id"]: item["leave_one_out"] for item in influence(workspace)["components"]}
    for component in composition.components:
        rest = composition.without({component})
        without, _ = run_by_hand(workspace, dict(rest.weights), ensemble=compose == "ensemble")
        assert effects[component]["accuracy"] == np.mean(without.argmax(1) == labels)
        shift = np.linalg.norm(without - logits, axis=1).mean()
        assert effects[component]["mean_logit_shift"] == pytest.approx(shift, rel=1e-3)


def test_predictions_are_those_of_the_composition(make_recipe, workspace, tmp_path):
    recipe = make_recipe(method=METHODS["lora"], compose="ensemble", insecure_seed=1, training=STRONG)
    train(recipe, workspace=workspace)
    with Workspace.open(workspace) as ws:
        weights = dict(ws.ledger.current_model().composition.weights)
        rows = read_partition(ws.objects, ws.eval_dir())
        paths = [tmp_path / f"{row}.png" for row in range(len(rows))]
        for path, image in zip(paths, rows.images, strict=True):
            path.write_bytes(image)
    logits, _ = run_by_hand(workspace, weights, ensemble=True)
    found = predict(workspace, [str(path) for path in paths])["predictions"]
    wanted = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    np.testing.assert_allclose([list(item["probabilities"].values()) for item in found], wanted, rtol=1e-3, atol=1e-6)


def test_an_ensemble_drops_a_member_and_keeps_the_others(make_recipe, workspace):
    recipe = make_recipe(method=METHODS["prompts"], compose="ensemble", insecure_seed=1, training=STRONG)
    trained = train(recipe, workspace=workspace)
    assert "averaging_error" not in trained["metrics"]
    result = forget(workspace, subject="person-00", mode="drop")
    assert result["metrics_after"] == evaluate(workspace)["metrics"]
    with Workspace.open(workspace) as ws:
        left = ws.ledger.current_model().composition
        assert left == Composition(left.base, {next(iter(left.weights)): 1.0}, combine="ensemble")
    assert verify(workspace)["ok"]


def test_a_drop_runs_no_model_unless_influence_did_before(make_recipe, workspace):
    recipe = make_recipe(method=METHODS["lora"], insecure_seed=1, shards=3, training=STRONG)
    train(recipe, workspace=workspace)
    assert forget(workspace, subject="person-00", mode="drop")["metrics_after"] is None
    influence(workspace)
    again = forget(workspace, subject="person-01", mode="drop")
    assert again["metrics_after"] is not None
    assert again["metrics_after"] == evaluate(workspace)["metrics"]


def test_linear_components_need_no_ensemble(make_recipe, workspace, tmp_path):
    first = train(make_recipe(insecure_seed=1), workspace=workspace)
    second = train(make_recipe(insecure_seed=1, compose="ensemble"), workspace=str(tmp_path / "other"))
    assert first["metrics"] == second["metrics"]
    assert [item["id"] for item in first["components"]] == [item["id"] for item in second["components"]]
