"""Weights files that name their architecture: bases from the file alone, and headers that lie."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_decompositions import VIT, decomposition

from privshard.api.recipe import Recipe
from privshard.api.setup import base_spec
from privshard.core.errors import InputError
from privshard.decomposition.recompose import write_free, write_tied
from privshard.models.architecture import HEADER, Architecture, read_architecture, read_header
from privshard.models.base import load_base
from privshard.models.build import model_of_file

TRANSFORM = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "crop_pct": 1.0}


@pytest.fixture
def path(tmp_path):
    """A recomposed model of depth 4."""
    cut = decomposition().first(3, [4])
    write_free(tmp_path / "m.safetensors", replace(cut, architecture=replace(VIT, transform=TRANSFORM)), source="s")
    return tmp_path / "m.safetensors"


def rewrite(path, change, *, tensors=None):
    """The same tensors under another header."""
    header = read_header(path)
    change(header)
    save_file(tensors or load_file(path), path, metadata={HEADER: json.dumps(header)})


def spec_of(path, **base):
    return base_spec(Recipe(base={"weights": str(path), **base}), 3)


def test_the_file_alone_names_the_base(path):
    spec = spec_of(path)
    assert (spec.model, dict(spec.args)) == (VIT.model, {"img_size": 32, "embed_dim": 24, "depth": 4})
    base = load_base(spec)
    assert len(base.view.blocks) == 4
    assert base.view.head.weight.shape == (3, 24)  # the seeded head, of the recipe's classes
    assert base.transform_config["mean"] == TRANSFORM["mean"]
    assert base.transform_config["input_size"] == (3, 32, 32)
    assert np.array_equal(base.state["blocks.3.mlp.fc1.weight"], load_file(path)["blocks.3.mlp.fc1.weight"].numpy())


def test_a_worker_builds_the_same_base_from_handed_in_weights(path):
    spec = spec_of(path)
    base = load_base(spec)
    path.unlink()
    assert load_base(spec, state=base.state).digest == base.digest


def test_naming_the_same_model_beside_it_is_no_contradiction(path):
    assert spec_of(path, model=VIT.model) == spec_of(path)
    assert load_base(spec_of(path, model=VIT.model)).digest == load_base(spec_of(path)).digest


def test_a_recipe_that_names_another_model_is_refused(path):
    with pytest.raises(InputError, match=r"says that it is vit_tiny_patch16_224 .* but the recipe says deit_tiny"):
        spec_of(path, model="deit_tiny_patch16_224")
    with pytest.raises(InputError, match=r"but the recipe says vit_tiny_patch16_224 with {'depth': 6}"):
        spec_of(path, model=VIT.model, args={"depth": 6})


def test_a_header_of_another_depth_is_a_lie(path):
    rewrite(path, lambda header: header["architecture"]["args"].update(depth=3))
    with pytest.raises(InputError, match=r"12 names differ: blocks\.3\.attn\.proj\.bias: model absent, file \(24,\)"):
        load_base(spec_of(path))
    with pytest.raises(InputError, match="12 names differ"):
        model_of_file(path)


@pytest.mark.parametrize("change", ["model", "transform", "classes", "weights"])
def test_a_header_that_fits_by_shape_but_is_of_something_else_is_a_lie(path, change):
    def lie(header):
        architecture = header["architecture"]
        if change == "model":
            architecture["model"] = "deit_tiny_patch16_224"
        elif change == "transform":
            architecture["transform"]["mean"] = [0.5, 0.5, 0.5]
        elif change == "classes":
            architecture["classes"] = ["v", "w", "x", "y", "z"]

    tensors = load_file(path)
    if change == "weights":
        tensors["norm.bias"][0] += 1
    rewrite(path, lie, tensors=tensors)
    for use in (lambda: load_base(spec_of(path)), lambda: model_of_file(path)):
        with pytest.raises(InputError, match=r"expected a true header .* which is not that of its weights and archit"):
            use()


def test_weights_without_a_header_need_the_model_named(tmp_path):
    save_file({"x": __import__("torch").zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="expected a file whose header names its architecture, got weights without it"):
        spec_of(tmp_path / "plain.safetensors")
    assert read_architecture(tmp_path / "plain.safetensors", required=False) is None


def test_a_tied_file_is_no_base_until_it_is_expanded(tmp_path):
    write_tied(tmp_path / "t.safetensors", decomposition().first(2, [4]), source="s")
    with pytest.raises(InputError, match=r"got a decomposition in .*Recompose it first: privshard recompose"):
        spec_of(tmp_path / "t.safetensors")


def test_an_unreadable_header_is_refused(path, tmp_path):
    rewrite(path, lambda header: header.pop("digest"))
    with pytest.raises(InputError, match=r"expected a true header .* unreadable"):
        read_architecture(path)
    (tmp_path / "short").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        read_header(tmp_path / "short")
    with pytest.raises(InputError, match="found nothing readable"):
        read_header(tmp_path / "absent")


def test_an_architecture_survives_json():
    assert Architecture.from_json(json.loads(json.dumps(VIT.to_json()))) == VIT
