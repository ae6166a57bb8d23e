"""Bases from local files, from timm, from the package and from handed-in weights; their digests and refusals."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_vits import tiny_vit
from torch import Tensor

from privshard.core.errors import InputError
from privshard.core.model import BaseSpec
from privshard.models import base as base_module
from privshard.models.base import EMBEDDED_MODEL, load_base
from privshard.models.vit import seeded_head

ARGS = {"img_size": 32, "embed_dim": 24, "depth": 3}


def weights_of(family: str = "vit") -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tiny_vit(family, dtype=torch.float32).state_dict().items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Weights of a tiny DeiT-Tiny, with a head of five classes."""
    save_file(weights_of(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


@pytest.fixture
def spec(path: Path) -> BaseSpec:
    return BaseSpec("vit_tiny_patch16_224", 4, str(path), ARGS, head_seed=7)


def test_local_weights_are_loaded_and_their_head_is_replaced(spec, path):
    base, stored = load_base(spec), load_file(path)
    assert base.state.keys() == stored.keys()
    for name, array in base.state.items():
        if not name.startswith("head."):
            assert np.array_equal(array, stored[name].numpy()), name
    weight, bias = seeded_head(4, 24, seed=7, std=spec.head_std)
    assert np.array_equal(base.state["head.weight"], weight.numpy())
    assert np.array_equal(base.state["head.bias"], bias.numpy())
    assert not any(parameter.requires_grad for parameter in base.view.model.parameters())
    assert not base.view.model.training
    assert {tensor.dtype for tensor in base.view.model.state_dict().values()} == {torch.float32}


def test_weights_without_a_head_and_in_half_precision(spec, path):
    expected = load_base(spec)
    rounded = {name: tensor.bfloat16() for name, tensor in weights_of().items() if not name.startswith("head.")}
    save_file(rounded, path)
    found = load_base(spec)
    assert found.digest != expected.digest
    assert np.array_equal(found.state["norm.weight"], rounded["norm.weight"].float().numpy())


def test_loading_is_deterministic_and_leaves_the_global_generator_out_of_it(spec):
    torch.manual_seed(0)
    one = load_base(spec)
    torch.manual_seed(1)
    assert load_base(spec).digest == one.digest


def test_handed_in_weights_give_the_same_base_without_the_file(spec, path):
    expected = load_base(spec)
    state = {name: array.copy() for name, array in expected.state.items()}
    path.unlink()
    found = load_base(spec, state=state)
    assert found.digest == expected.digest
    assert found.transform_config == expected.transform_config
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(found.view.model(image), expected.view.model(image))
    state["norm.weight"][:] = 0
    assert not torch.equal(found.view.model.norm.weight, torch.zeros(24))  # it holds a copy


def test_the_digest_tells_weights_head_arguments_and_model_apart(spec, path):
    digests = {load_base(spec).digest}
    variants = [
        replace(spec, head_seed=8),
        replace(spec, head_std=0.03),
        replace(spec, num_classes=5),
        replace(spec, args={**ARGS, "global_pool": "token"}),
        replace(spec, model="deit_tiny_patch16_224"),
    ]
    for number, variant in enumerate(variants, start=2):
        digests.add(load_base(variant).digest)
        assert len(digests) == number, variant
    one_bit = weights_of()
    one_bit["blocks.0.attn.qkv.weight"].view(torch.int32)[3, 5] ^= 1
    save_file(one_bit, path)
    assert load_base(spec).digest not in digests


def test_where_the_weights_came_from_does_not_enter_the_digest(spec, path):
    expected = load_base(spec).digest
    moved = path.rename(path.with_name("other.safetensors"))
    assert load_base(replace(spec, weights=str(moved))).digest == expected


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda w: w.pop("norm.bias"), r"1 names differ: norm\.bias: model \(24,\), file absent"),
        (lambda w: w.update(extra=torch.zeros(2)), r"extra: model absent, file \(2,\)"),
        (
            lambda w: w.update({"pos_embed": torch.zeros(1, 10, 24)}),
            r"pos_embed: model \(1, 5, 24\), file \(1, 10, 24\)",
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_weights_that_do_not_match_are_refused_with_both_sides(spec, path, change, shown):
    weights = weights_of()
    change(weights)
    save_file(weights, path)
    with pytest.raises(InputError, match=shown):
        load_base(spec)


def test_weights_of_another_depth_are_counted(spec):
    with pytest.raises(InputError, match=r"12 names differ: blocks\.2\.attn\.proj\.bias: model absent, file \(24,\)"):
        load_base(replace(spec, args={**ARGS, "depth": 2}))


def test_a_truncated_file_is_refused(spec, path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"vit\.safetensors is not a whole safetensors file"):
        load_base(spec)


def test_a_missing_file_is_refused(spec):
    with pytest.raises(InputError, match=r"found nothing at .*nowhere\.safetensors"):
        load_base(replace(spec, weights="nowhere.safetensors"))


def test_unknown_models_are_refused_with_close_names(spec):
    with pytest.raises(InputError, match=r"got 'deit_tinny_patch16_224'\. Close names: deit_tiny_patch16_224"):
        load_base(replace(spec, model="deit_tinny_patch16_224"))
    with pytest.raises(InputError, match=r"got 'zzz'\. See timm\.list_models"):
        load_base(replace(spec, model="zzz"))


@pytest.mark.parametrize("args", [{"depht": 3}, {"embed_dim": 25}, {"patch_size": 0}])
def test_arguments_that_timm_does_not_take(spec, args):
    with pytest.raises(InputError, match=r"base\.args: timm's vit_tiny_patch16_224 does not accept"):
        load_base(replace(spec, args={**ARGS, **args}))


@pytest.mark.parametrize(("model", "args"), [("resnet10t", {}), ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"})])
def test_models_without_rules_are_refused_before_anything_is_loaded(spec, model, args):
    with pytest.raises(InputError, match=r"expected a timm VisionTransformer|blocks\.0\.norm1: expected LayerNorm"):
        load_base(replace(spec, model=model, args={**ARGS, **args} if args else {}))


def test_pretrained_weights_are_asked_of_timm(spec, monkeypatch):
    calls = []

    def create(name, *, pretrained, **args):
        calls.append((name, pretrained, args))
        model = plain(name, **args)
        model.load_state_dict(trained, strict=False)
        return model

    plain = timm.create_model
    trained = {name: tensor for name, tensor in weights_of().items() if not name.startswith("head.")}
    monkeypatch.setattr(timm, "create_model", create)
    base = load_base(replace(spec, weights="pretrained"))
    assert calls == [("vit_tiny_patch16_224", True, {**ARGS, "num_classes": 4})]
    assert base.digest == load_base(spec).digest
    assert calls[1][1] is False
    load_base(replace(spec, weights="pretrained"), state=base.state)
    assert calls[2][1] is False  # handed-in weights never reach for the network


def test_pretrained_weights_that_cannot_be_fetched(spec, monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(
        InputError, match=r"could not load pretrained weights for vit_tiny_patch16_224.*local safetensors"
    ):
        load_base(BaseSpec("vit_tiny_patch16_224", 4, "pretrained"))
    with pytest.raises(InputError, match=r"could not load pretrained weights .*No pretrained weights exist"):
        load_base(BaseSpec("vit_small_patch16_18x2_224", 4, "pretrained", {"depth": 1, "embed_dim": 24}))


@pytest.mark.parametrize("args", [ARGS, {**ARGS, "img_size": 48}])
def test_the_transform_is_timms_own_for_evaluation(spec, path, args):
    size = args["img_size"]
    model = timm.create_model("vit_tiny_patch16_224", **args)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    config = {**timm.data.resolve_model_data_config(model), "input_size": (3, size, size)}
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    base = load_base(replace(spec, args=args))
    found = base.transform(photo)
    assert found.shape == (3, size, size)
    assert torch.equal(found, timm.data.create_transform(**config, is_training=False)(photo))
    json.dumps(dict(base.transform_config))


def test_the_embedded_base():
    spec = BaseSpec(EMBEDDED_MODEL, 3)
    base = load_base(spec)
    file = base_module._embedded_path()
    assert file.stat().st_size <= 8 * 2**20
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert {"architecture", "mean", "std", "source"} <= metadata.keys()
    assert base.transform_config["input_size"] == (3, 32, 32)
    image = base.transform(Image.new("RGB", (50, 40), (255, 0, 0)))
    assert image.shape == (3, 32, 32)
    mean, std = (torch.tensor(json.loads(metadata[name])) for name in ("mean", "std"))
    torch.testing.assert_close(image[:, 16, 16], (torch.tensor([1.0, 0.0, 0.0]) - mean) / std)
    assert base.view.pools_class_token
    logits = base.view.model(image[None])
    assert logits.shape == (1, 3)
    assert torch.isfinite(logits).all()
    assert load_base(spec, state=base.state).digest == base.digest


def test_the_embedded_base_has_its_own_weights_and_others_have_not():
    with pytest.raises(InputError, match="has its own weights, got 'pretrained'"):
        load_base(BaseSpec(EMBEDDED_MODEL, 3, "pretrained"))
    with pytest.raises(InputError, match=f"holds weights for {EMBEDDED_MODEL} only, not for 'vit_tiny_patch16_224'"):
        load_base(BaseSpec("vit_tiny_patch16_224", 3))


def test_real_weights_load_strictly():
    home = os.environ.get("PRIVSHARD_TEST_DATA")
    if home is None:
        pytest.skip("PRIVSHARD_TEST_DATA is not set: no real weights to test on")
    path = Path(home) / "weights" / "deit_tiny_patch16_224.safetensors"
    assert path.is_file(), f"PRIVSHARD_TEST_DATA is set, but {path} is missing"
    base, stored = load_base(BaseSpec("deit_tiny_patch16_224", 10, str(path))), load_file(path)
    assert base.state.keys() == stored.keys()
    for name, array in base.state.items():
        if not name.startswith("head."):
            assert np.array_equal(array, stored[name].numpy()), name
    assert base.transform_config["input_size"] == (3, 224, 224)
    assert base.transform_config["interpolation"] == "bicubic"


def test_an_orthogonal_head_has_the_size_of_a_random_one():
    random, _ = seeded_head(10, 64, seed=3, std=0.02)
    weight, bias = seeded_head(10, 64, seed=3, std=0.02, orthogonal=True)
    torch.testing.assert_close(weight @ weight.T, 0.02**2 * 64 * torch.eye(10), rtol=1e-5, atol=1e-7)
    assert not bias.any()
    assert ((weight * random).sum() / weight.norm() / random.norm()) > 0.9  # near the draw that it comes from
    tall, _ = seeded_head(64, 10, seed=3, std=0.02, orthogonal=True)
    torch.testing.assert_close(tall.T @ tall, 0.02**2 * 64 * torch.eye(10), rtol=1e-5, atol=1e-7)
    assert torch.equal(weight, seeded_head(10, 64, seed=3, std=0.02, orthogonal=True)[0])


def test_what_public_rows_taught_is_part_of_the_base():
    spec = BaseSpec(EMBEDDED_MODEL, 3)
    plain = load_base(spec)
    width = plain.view.head.in_features
    head = {"head.weight": np.full((3, width), 0.5, np.float32), "head.bias": np.ones(3, np.float32)}
    core = {"core/head.bias": np.arange(3, dtype=np.float32)}
    fitted = load_base(replace(spec, head="public"), public=head)
    assert fitted.view.head.bias.tolist() == [1, 1, 1]
    cored = load_base(spec, public=core)
    assert torch.equal(cored.view.head.weight, plain.view.head.weight)
    assert cored.core["head.bias"].tolist() == [0, 1, 2]
    assert len({plain.digest, fitted.digest, cored.digest, load_base(replace(spec, head="orthogonal")).digest}) == 4
    again = load_base(spec, state=cored.state)
    assert again.digest == cored.digest
    assert again.core["head.bias"].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"base.head: expected a public head of shape \(3, \d+\).*got none"):
        load_base(replace(spec, head="public"))
