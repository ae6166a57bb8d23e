"""Stacks of equal blocks are found by name; what isn't one is refused."""

from __future__ import annotations

import pytest
import timm
from tiny_decompositions import state_of, swin, vit

from privshard.core.errors import InputError
from privshard.decomposition.stacks import args_with_depth, find_stacks, is_head, plain_names, with_depths


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in state_of(model).items()}


def test_a_vit_is_one_stack():
    shapes = shapes_of(vit(depth=3))
    (stack,) = find_stacks(shapes)
    assert (stack.prefix, stack.depth, len(stack.shapes)) == ("blocks", 3, 12)
    assert stack.shapes["attn.qkv.weight"] == (72, 24)
    assert stack.full_name(2, "norm1.bias") == "blocks.2.norm1.bias"
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias"} <= set(plain_names(list(shapes)))
    assert args_with_depth({"img_size": 32}, with_depths([stack], [7])) == {"img_size": 32, "depth": 7}


def test_a_swin_is_taken_stage_by_stage():
    shapes = shapes_of(swin())
    stacks = find_stacks(shapes)
    assert [(stack.prefix, stack.depth) for stack in stacks] == [
        ("layers.0.blocks", 2),
        ("layers.1.blocks", 2),
        ("layers.2.blocks", 4),
        ("layers.3.blocks", 2),
    ]
    assert "layers.1.downsample.reduction.weight" in plain_names(list(shapes))
    assert args_with_depth({}, with_depths(stacks, [2, 2, 6, 2])) == {"depths": [2, 2, 6, 2]}


def test_blocks_that_differ_are_refused_with_both_sides():
    shapes = {**shapes_of(vit(depth=3)), "blocks.1.mlp.fc1.bias": (7,)}
    with pytest.raises(InputError, match=r"blocks\.1 differs from blocks\.0: mlp\.fc1\.bias is \(7,\) instead of"):
        find_stacks(shapes)
    with pytest.raises(InputError, match=r"blocks\.1 differs from blocks\.0: norm1\.bias is absent"):
        find_stacks({name: shape for name, shape in shapes_of(vit(depth=2)).items() if name != "blocks.1.norm1.bias"})


def test_a_hierarchy_inside_one_stack_and_no_stack_at_all_are_refused():
    model = timm.create_model("twins_svt_small", num_classes=2)
    with pytest.raises(InputError, match="expected blocks of equal shape in blocks"):
        find_stacks(shapes_of(model))
    with pytest.raises(InputError, match="expected a transformer with blocks"):
        find_stacks(shapes_of(timm.create_model("resnet10t", num_classes=2)))


@pytest.mark.parametrize(
    ("depths", "message"), [([0], "depth: expected at least 1, got 0"), ([2, 2], r"expected 1 number\(s\)")]
)
def test_depths_that_no_model_has(depths, message):
    with pytest.raises(InputError, match=message):
        with_depths(find_stacks(shapes_of(vit(depth=2))), depths)


def test_what_comes_after_the_blocks_is_the_head():
    assert [is_head(name) for name in ("norm.weight", "head.fc.bias", "fc_norm.bias")] == [True] * 3
    assert [is_head(name) for name in ("cls_token", "patch_embed.proj.weight", "norm_pre.weight")] == [False] * 3
