"""The tangent method on bases that take the k-block engine: whole networks, and distilled ones."""

from __future__ import annotations

import io
from collections.abc import Callable

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_vits import tiny_vit

from privshard.api import export, forget, plan_training, predict, schemas, train, verify
from privshard.api.edit_target import open_target
from privshard.api.setup import Setup
from privshard.core.displacement import Displacement
from privshard.core.errors import InputError
from privshard.data.images import image_batches
from privshard.data.shards import read_partition
from privshard.models.base import load_base
from privshard.store.layout import constants_path
from privshard.store.workspace import Workspace
from privshard.tangent import linearize

STRONG = {"steps": 3, "sample_rate": 1.0, "lr": 0.05, "average_from": 1.0}
NAMES = {"vit": "vit_tiny_patch16_224", "distilled": "deit_tiny_distilled_patch16_224"}


@pytest.fixture
def make_base(tmp_path) -> Callable[[str], dict]:
    """family -> the base section of a small model of that family."""

    def make(family: str) -> dict:
        path = tmp_path / f"{family}.safetensors"
        save_file(dict(tiny_vit(family, dtype=torch.float32).state_dict()), path)
        args = {"img_size": 32, "embed_dim": 24, "depth": 3}
        return {"model": NAMES[family], "args": args, "weights": str(path)}

    return make


def logits_by_hand(workspace: str) -> tuple[torch.Tensor, list[bytes]]:
    """Logits of held-out rows, by the linearized model and the components' files; and the rows' images."""
    with Workspace.open(workspace) as ws:
        setup, rows = Setup.load(ws), read_partition(ws.objects, ws.eval_dir())
        base = load_base(setup.base)
        (images,) = image_batches(rows.images, transform=base.transform, batch_size=len(rows))
        weights = ws.ledger.current_model().composition.weights
        parts = []
        for name, weight in weights.items():
            arrays = ws.load_component(name)[1]
            tensors = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
            parts.append(weight * Displacement(tensors, "b", "tangent"))
    lin = linearize(base.view.model, blocks=setup.method.options["blocks"], base="b")
    assert parts[0].tensors.keys() == lin.shapes().keys()
    with torch.no_grad():
        return lin(images, sum(parts[1:], start=parts[0])), list(rows.images)


@pytest.mark.parametrize("family", ["vit", "distilled"])
def test_a_base_beyond_the_class_row_form_lives_through_everything(make_recipe, workspace, tmp_path, make_base, family):
    options = {"name": "tangent", "blocks": "all" if family == "vit" else 1}
    recipe = make_recipe(
        method=options,
        base=make_base(family),
        training=STRONG,
        insecure_seed=1,
        execution={"cache": "disk"},
    )
    why = "embeddings and all blocks are linearized" if family == "vit" else "head_dist reads the distillation token"
    method = {**options, "engine": f"k-block ({why})"}
    assert plan_training(recipe, workspace=workspace)["method"] == method
    trained = train(recipe, workspace=workspace)
    jsonschema.validate(trained, schemas.load("train"))
    assert trained["method"] == method
    with Workspace.open(workspace) as ws:
        assert ws.objects.local_path(constants_path(0)).exists()
    logits, images = logits_by_hand(workspace)
    paths = [tmp_path / f"{row}.png" for row in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    found = predict(workspace, [str(path) for path in paths])["predictions"]
    wanted = torch.softmax(logits.double(), dim=1).numpy()
    np.testing.assert_allclose([list(item["probabilities"].values()) for item in found], wanted, rtol=1e-4, atol=1e-7)
    assert forget(workspace, subject="person-00", mode="retrain")["status"] == "done"
    assert verify(workspace)["ok"]
    refused = "moves the embeddings too" if family == "vit" else "^head_dist: expected"
    with pytest.raises(InputError, match=refused), open_target(workspace, model=None):
        pass


@pytest.mark.slow
def test_whole_networks_are_exported(make_recipe, workspace, tmp_path, make_base):
    recipe = make_recipe(method={"blocks": "all"}, base=make_base("distilled"), training=STRONG, insecure_seed=1)
    train(recipe, workspace=workspace)
    out = tmp_path / "model.pt2"
    export(workspace, out=str(out))
    with Workspace.open(workspace) as ws:
        setup, rows = Setup.load(ws), read_partition(ws.objects, ws.eval_dir())
    (images,) = image_batches(rows.images, transform=load_base(setup.base).transform, batch_size=len(rows))
    expected, _ = logits_by_hand(workspace)
    found = torch.export.load(io.BytesIO(out.read_bytes())).module()(images)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["head", "full", "prompts"])
def test_methods_that_know_one_head_refuse_two(make_recipe, workspace, make_base, name):
    with pytest.raises(InputError, match=rf"^head_dist: expected a base with one head for the method {name}"):
        plan_training(make_recipe(method={"name": name}, base=make_base("distilled")), workspace=workspace)
