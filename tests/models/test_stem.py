"""The view of a stem: everything before the blocks, and what is refused by path."""

from __future__ import annotations

import pytest
import torch
from timm.layers import HybridEmbed
from tiny_vits import FAMILIES, TWO_HEADS, images, tiny_vit
from torch import nn

from privshard.core.errors import InputError
from privshard.models.stem import view_stem
from privshard.models.vit import freeze, view_vit
from privshard.tangent.dual import Dual

VARIANTS = {
    **{family: (family, {}) for family in (*FAMILIES, *TWO_HEADS)},
    "embedding norm": ("vit", {"embed_norm_layer": "layernorm"}),
    "no positions": ("registers", {"pos_embed": "none"}),
    "not square": ("vit", {"img_size": (48, 32)}),
}


@pytest.mark.parametrize(("family", "overrides"), VARIANTS.values(), ids=VARIANTS.keys())
def test_stem_and_blocks_hold_every_parameter_and_give_the_same_tokens(family, overrides):
    model = freeze(tiny_vit(family, **overrides))
    stem, view, x = view_stem(model), view_vit(model), images(2, model)
    assert torch.equal(stem.patches(x)[1, 1, :16], x[1, 0, 0, 16:32]) or family in ("dinov2", "registers")
    at, _ = Dual([]).stem(stem, stem.patches(x))
    torch.testing.assert_close(at.x, view.tokens(x, first_block=0), rtol=1e-13, atol=1e-13)
    parts = {**stem.parts(), **view.parts(0)}
    found = {f"{name}.{suffix}": p for name, part in parts.items() for suffix, p in part.named_parameters()}
    found |= {part.name: part.value for part in stem.added}
    wanted = dict(model.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(found[name] is wanted[name] for name in found)


def _overlapping(model: nn.Module) -> None:
    model.patch_embed.proj = nn.Conv2d(3, 24, kernel_size=16, stride=8)


def _hybrid(model: nn.Module) -> None:
    model.patch_embed = HybridEmbed(nn.Conv2d(3, 8, 4, stride=4), img_size=32, proj=True, embed_dim=24)


def _other_norm(model: nn.Module) -> None:
    model.norm_pre = nn.BatchNorm1d(5)


@pytest.mark.parametrize(
    ("change", "overrides", "shown"),
    [
        (_overlapping, {}, r"^patch_embed\.proj: expected a Conv2d over patches that don't overlap"),
        (_hybrid, {}, r"^patch_embed: expected timm's PatchEmbed .* got HybridEmbed"),
        (_other_norm, {}, r"^norm_pre: expected LayerNorm .* got BatchNorm1d"),
        (None, {"dynamic_img_size": True}, r"^patch_embed: expected images of one size"),
        (None, {"dynamic_img_pad": True}, r"^patch_embed: expected images of one size"),
    ],
)
def test_stems_without_rules_are_refused_by_path(change, overrides, shown):
    model = tiny_vit(**overrides)
    if change is not None:
        change(model)
    with pytest.raises(InputError, match=shown) as caught:
        view_stem(model)
    assert "a number of blocks" in str(caught.value.remedy)
