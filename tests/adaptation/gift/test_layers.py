"""Layers by pattern, and which may share a generator."""

from __future__ import annotations

import pytest
import torch
from tiny_vits import tiny_vit

from privshard.adaptation.gift.layers import KINDS, target_layers
from privshard.adaptation.gift.sharing import groups
from privshard.core.errors import InputError
from privshard.models.vit import view_vit


@pytest.fixture(scope="module")
def view():
    return view_vit(tiny_vit())


def test_the_output_projections_are_the_default(view):
    layers = target_layers(view)
    assert [layer.name for layer in layers] == [f"blocks.{index}.attn.proj" for index in range(3)]
    assert all(layer.weight_OI is not None and layer.shape == (24, 24) for layer in layers)


def test_a_pattern_names_kinds_layers_or_both(view):
    assert [layer.name for layer in target_layers(view, ["blocks.1.attn.*"])] == [
        f"blocks.1.attn.{kind}" for kind in ("q", "k", "v", "proj")
    ]
    assert {layer.kind for layer in target_layers(view, ["*"])} == set(KINDS)
    assert [layer.name for layer in target_layers(view, ["blocks.2.mlp.fc1", "blocks.0.mlp.fc1"])] == [
        "blocks.0.mlp.fc1",
        "blocks.2.mlp.fc1",
    ]


def test_parts_of_a_fused_qkv_are_its_rows(view):
    block = view.blocks[1]
    q, k, v = target_layers(view, ["blocks.1.attn.[qkv]"])
    assert torch.equal(torch.cat([q.weight_OI, k.weight_OI, v.weight_OI]), block.qkv.weight)
    x = torch.randn(2, 24, dtype=torch.float64)
    assert torch.allclose(x @ k.weight_OI.mT, (block.qkv(x) - block.qkv.bias)[:, 24:48])


@pytest.mark.parametrize("pattern", ["attn.out", "blocks.3.attn.proj", "proj"])
def test_a_pattern_that_matches_nothing_is_refused(view, pattern):
    with pytest.raises(InputError, match=rf"got '{pattern}', which matches none.*blocks.0.attn.q to blocks.2.mlp.fc2"):
        target_layers(view, ["attn.proj", pattern])


def test_no_layer_is_refused(view):
    with pytest.raises(InputError, match="expected at least one layer"):
        target_layers(view, [])


@pytest.mark.parametrize(
    ("sharing", "names"),
    [
        ("all", ["all"]),
        ("kind", ["attn.q", "attn.proj"]),
        ("block", ["blocks.0", "blocks.1", "blocks.2"]),
        ("layer", [f"blocks.{index}.attn.{kind}" for index in range(3) for kind in ("q", "proj")]),
    ],
)
def test_sharing_groups_layers(view, sharing, names):
    layers = target_layers(view, ["attn.q", "attn.proj"])
    found = groups(layers, sharing=sharing)
    assert [group.name for group in found] == names
    assert sorted(layer.name for group in found for layer in group.layers) == sorted(layer.name for layer in layers)


@pytest.mark.parametrize("sharing", ["all", "block"])
def test_shapes_that_differ_under_one_generator_are_refused_with_both(view, sharing):
    layers = target_layers(view, ["attn.proj", "mlp.fc1"])
    with pytest.raises(InputError, match=r"blocks.0.attn.proj is \(24, 24\) and blocks.0.mlp.fc1 is \(96, 24\)"):
        groups(layers, sharing=sharing)
    assert len(groups(layers, sharing="kind")) == 2


def test_an_unknown_sharing_is_refused(view):
    with pytest.raises(InputError, match="expected one of all, kind, block, layer, got 'head'"):
        groups(target_layers(view), sharing="head")
