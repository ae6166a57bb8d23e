"""The view of a vision transformer: what it finds, and what it refuses by path."""

from __future__ import annotations

import pytest
import torch
from tiny_vits import FAMILIES, images, tiny_vit
from torch import nn

from privshard.core.errors import InputError
from privshard.models.vit import freeze, seeded_head, view_vit

# family -> the optional parts of a block that it has
OPTIONAL = {
    "vit": set(),
    "dinov2": {"ls1", "ls2"},
    "qk_norm": {"q_norm", "k_norm"},
    "scale_norms": {"attn_norm", "mlp_norm"},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", [0, 2])
def test_parts_hold_every_parameter_from_a_block_to_the_head(family, first):
    model = tiny_vit(family)
    view = view_vit(model)
    found = {
        f"{name}.{suffix}": parameter
        for name, part in view.parts(first).items()
        for suffix, parameter in part.named_parameters()
    }
    tail = (*(f"blocks.{index}." for index in range(first, 3)), "norm.", "fc_norm.", "head.")
    wanted = {name: parameter for name, parameter in model.named_parameters() if name.startswith(tail)}
    assert found.keys() == wanted.keys()
    assert all(found[name] is wanted[name] for name in found)


@pytest.mark.parametrize("family", OPTIONAL)
def test_optional_parts(family):
    block = view_vit(tiny_vit(family)).blocks[1]
    optional = ("ls1", "ls2", "q_norm", "k_norm", "attn_norm", "mlp_norm")
    assert {name for name in optional if getattr(block, name) is not None} == OPTIONAL[family]
    assert (block.name, block.num_heads, block.head_dim) == (
        "blocks.1",
        block.module.attn.num_heads,
        24 // block.num_heads,
    )
    assert block.scale == pytest.approx(block.head_dim**-0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_then_blocks_then_pooling_are_the_model(family):
    model = freeze(tiny_vit(family))
    view, x = view_vit(model), images(2, model)
    for first in (0, 2, 3):
        tokens = view.tokens(x, first_block=first)
        for block in model.blocks[first:]:
            tokens = block(tokens)
        pooled = model.fc_norm(view.pool(model.norm(tokens)))
        torch.testing.assert_close(view.head(pooled), model(x), rtol=1e-13, atol=1e-13)


def test_pooling_of_the_class_token():
    assert view_vit(tiny_vit("registers")).pools_class_token
    assert not view_vit(tiny_vit("avg_pool")).pools_class_token
    tokens = torch.randn(2, 5, 24)
    assert torch.equal(view_vit(tiny_vit()).pool(tokens), tokens[:, 0])
    torch.testing.assert_close(view_vit(tiny_vit("avg_pool")).pool(tokens), tokens[:, 1:].mean(1))
    torch.testing.assert_close(view_vit(tiny_vit("avg_pool_prefix")).pool(tokens), tokens.mean(1))


def test_moving_a_view_moves_its_model():
    view = view_vit(tiny_vit())
    assert view.to("meta") is view
    assert {parameter.device.type for parameter in view.model.parameters()} == {"meta"}


def test_a_block_in_the_middle_is_named():
    model = tiny_vit()
    model.blocks[1].mlp.fc2 = nn.Bilinear(2, 2, 2)
    with pytest.raises(InputError, match=r"^blocks\.1\.mlp\.fc2: expected Linear, got Bilinear\."):
        view_vit(model)


def test_other_modules_are_refused():
    with pytest.raises(
        InputError, match=r"model: expected a timm VisionTransformer, got torch\.nn\.modules\.linear\.Linear"
    ):
        view_vit(nn.Linear(2, 2))


def test_freezing_switches_off_gradients_and_training():
    model = tiny_vit().train()
    assert freeze(model) is model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_the_seeded_head_is_a_function_of_its_seed():
    weight, bias = seeded_head(50, 40, seed=3, std=0.02)
    assert weight.shape == (50, 40)
    assert bias.tolist() == [0.0] * 50
    assert weight.std() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(weight, seeded_head(50, 40, seed=3, std=0.02)[0])
    assert not torch.equal(weight, seeded_head(50, 40, seed=4, std=0.02)[0])
    # the bits are part of every base's digest, so they may never change
    assert seeded_head(1, 2, seed=0, std=1.0)[0].tolist() == [[1.5409960746765137, -0.293428897857666]]
    state = torch.random.get_rng_state()
    seeded_head(2, 2, seed=0, std=1.0)
    assert torch.equal(state, torch.random.get_rng_state())
