"""`linearize` against torch's forward and reverse mode on the plain model, over families of vision transformers."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import gradients_by_loop, linearized_by_jvp
from timm.layers import Attention
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from tiny_vits import FAMILIES, NUM_CLASSES, images, random_tensors, tiny_vit
from torch import nn

from privshard.core.displacement import Displacement
from privshard.core.errors import InputError
from privshard.tangent import LinearizedViT, linearize

EXACT = 1e-12  # relative to the largest entry, double precision


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected entry."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def displacement_of(lin: LinearizedViT, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Displacement:
    return Displacement(random_tensors(lin.shapes(), seed=seed, dtype=dtype), lin.base, "tangent")


def move_own(lin: LinearizedViT, *, seed: int = 0) -> None:
    """Put the own displacement of `lin` at random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in lin.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    ("family", "blocks"),
    [
        *((family, blocks) for family in FAMILIES for blocks in (1, 2, 3)),
        *(("distilled", blocks) for blocks in (1, "all")),
        *((family, "all") for family in ("clip", "registers", "avg_pool")),
    ],
)
def test_value_is_that_of_forward_mode(family, blocks):
    model = tiny_vit(family)
    lin, x = linearize(model, blocks=blocks), images(3, model)
    displacement = displacement_of(lin)
    f0, df = linearized_by_jvp(model, x, displacement.tensors)
    found = lin(x, displacement)
    assert relative(found, f0 + df) < EXACT
    assert relative(found - f0, df) < EXACT
    assert df.abs().max() > 0.1 * f0.abs().max()  # the derivative is no footnote here


@pytest.mark.parametrize(
    ("family", "blocks"),
    [
        *((family, blocks) for family in FAMILIES for blocks in (1, 3)),
        *((family, "all") for family in ("distilled", "clip", "registers")),
    ],
)
def test_gradient_of_the_own_displacement_is_that_of_the_plain_model_at_its_weights(family, blocks):
    model = tiny_vit(family)
    lin, x = linearize(model, blocks=blocks), images(3, model)
    move_own(lin)
    cotangent = torch.randn(3, NUM_CLASSES, generator=torch.Generator().manual_seed(1)).double()
    (lin(x) * cotangent).sum().backward()
    named = lin._own()
    assert named.keys() == lin.shapes().keys()
    by_example = gradients_by_loop(model, x, cotangent, named)
    for name, parameter in named.items():
        expected = sum(example[name] for example in by_example).reshape(parameter.shape)
        assert parameter.grad is not None
        scale = max(float(expected.abs().max()), 1.0)
        assert float((parameter.grad - expected).abs().max()) < EXACT * scale, name


@pytest.mark.parametrize(("family", "blocks"), [*((family, 2) for family in FAMILIES), ("distilled", "all")])
def test_own_and_handed_in_displacements_act_alike(family, blocks):
    model = tiny_vit(family)
    lin, x = linearize(model, blocks=blocks), images(2, model)
    move_own(lin)
    assert relative(lin(x), lin(x, lin.displacement())) < EXACT


def test_everything_that_is_linearized_has_the_names_and_shapes_of_the_model():
    model = tiny_vit("dinov2")
    lin = linearize(model, blocks=2)
    state = {name: tuple(p.shape) for name, p in model.named_parameters()}
    wanted = {
        name: shape for name, shape in state.items() if name.startswith(("blocks.1.", "blocks.2.", "norm", "head"))
    }
    assert lin.shapes() == wanted
    assert {name: tuple(tensor.shape) for name, tensor in lin.displacement().tensors.items()} == wanted


def test_all_blocks_by_name():
    model = tiny_vit()
    lin = linearize(model, blocks="all")
    assert lin.shapes() == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {name: tuple(t.shape) for name, t in lin.displacement().tensors.items()} == lin.shapes()
    assert lin.shapes().keys() - linearize(model, blocks=3).shapes().keys() == {
        *("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    }
    assert len(linearize(model).shapes()) < len(linearize(model, blocks=2).shapes())


@settings(deadline=None, max_examples=15)
@given(st.floats(-4, 4), st.floats(-4, 4), st.integers(0, 50))
def test_linear_in_the_displacement(a, b, seed):
    model = tiny_vit()
    lin, x = linearize(model, blocks=2), images(2, model)
    one, two = displacement_of(lin, seed=seed), displacement_of(lin, seed=seed + 1)
    f0 = lin(x, 0 * one)
    combined = lin(x, a * one + b * two) - f0
    expected = a * (lin(x, one) - f0) + b * (lin(x, two) - f0)
    torch.testing.assert_close(combined, expected, rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=4))
def test_weights_that_sum_to_one_average_the_outputs(weights):
    weights = [*weights, 1 - sum(weights)]
    model = tiny_vit()
    lin, x = linearize(model), images(2, model)
    parts = [displacement_of(lin, seed=seed) for seed in range(len(weights))]
    composed = sum((w * part for w, part in zip(weights[1:], parts[1:], strict=True)), weights[0] * parts[0])
    outputs = lin(x, parts)
    expected = sum(w * out for w, out in zip(weights, outputs, strict=True))
    torch.testing.assert_close(lin(x, composed), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_zero_displacement_gives_the_base(family):
    model = tiny_vit(family)
    lin, x = linearize(model, blocks=3), images(2, model)
    assert relative(lin(x), model(x)) < 1e-13  # rounding only: attention is written out, timm's is fused
    assert torch.equal(lin(x), lin(x, 0 * lin.displacement()))


def test_several_displacements_share_the_primal_and_equal_separate_calls(monkeypatch):
    model = tiny_vit("registers")
    lin, x = linearize(model, blocks=2), images(2, model)
    items = [displacement_of(lin, seed=seed) for seed in range(3)]
    separate = torch.stack([lin(x, item) for item in items])
    stem = []
    monkeypatch.setattr(model, "_pos_embed", lambda x, plain=model._pos_embed: stem.append(1) or plain(x))
    together = lin(x, items)
    assert together.shape == (3, 2, NUM_CLASSES)
    assert torch.equal(together, separate)
    assert len(stem) == 1
    assert lin(x, tuple(items[:1])).shape == (1, 2, NUM_CLASSES)
    assert lin(x, []).shape == (0, 2, NUM_CLASSES)


def test_cached_tokens_give_the_same_bits():
    model = tiny_vit()
    lin, x = linearize(model, blocks=2), images(2, model)
    displacement, tokens = displacement_of(lin), lin.tokens(x)
    assert not tokens.requires_grad
    assert torch.equal(lin.from_tokens(tokens, displacement), lin(x, displacement))


# measured 3e-6 and 2.5e-2 at worst over the families
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_lower_precisions(family, dtype, bound):
    model, exact = tiny_vit(family, dtype=dtype), tiny_vit(family, dtype=dtype).double()
    lin, x = linearize(model, blocks=3), images(3, model)
    displacement = displacement_of(lin, dtype=dtype)
    f0, df = linearized_by_jvp(exact, x.double(), displacement.to(torch.float64).tensors)
    found = lin(x, displacement)
    assert found.dtype == dtype
    assert relative(found, f0 + df) < bound


def test_the_model_is_frozen_and_stays_in_evaluation_mode():
    model = tiny_vit(drop_rate=0.5, drop_path_rate=0.5, attn_drop_rate=0.5).train()
    lin, x = linearize(model, blocks=2), images(2, model)
    for mode in (lambda: lin, lin.train, lin.eval, nn.Sequential(lin).train):
        mode()
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert lin.training
    assert all(module.training for module in lin.delta.modules())
    assert torch.equal(lin(x), lin(x))


def test_training_moves_the_displacement_and_nothing_else():
    model = tiny_vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lin, x = linearize(model), images(4, model)
    base = lin.base
    optimizer = torch.optim.SGD([p for p in lin.parameters() if p.requires_grad], lr=0.1)
    labels = torch.arange(4)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(lin(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert lin.displacement().norm() > 0
    assert linearize(model).base == base
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_displacements_are_copies():
    lin = linearize(tiny_vit())
    first = lin.displacement()
    move_own(lin)
    assert first.norm() == 0


def test_the_base_is_named_by_its_weights():
    one, same, other = tiny_vit(), tiny_vit(), tiny_vit()
    other.head.bias.data[0] += 1e-3
    assert linearize(one).base == linearize(same, blocks=2).base != linearize(other).base
    assert linearize(one, base="abc").displacement().base == "abc"


def test_displacements_of_another_base_or_space_are_refused_with_both_sides():
    model = tiny_vit()
    lin, x = linearize(model, base="a" * 64), images(1, model)
    own = lin.displacement()
    with pytest.raises(InputError, match=r"space 'tangent' of base aaaaaaaaaaaa, got .*'tangent' of base bbbbbbbbbbbb"):
        lin(x, Displacement(own.tensors, "b" * 64, "tangent"))
    with pytest.raises(InputError, match=r"expected space 'tangent' .* got space 'weight'"):
        lin(x, [own, Displacement(own.tensors, own.base, "weight")])


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda t: {n: v for n, v in t.items() if n != "head.bias"}, r"head\.bias: expected \(5,\), got none"),
        (lambda t: {**t, "extra": torch.zeros(2)}, r"extra: expected none, got \(2,\)"),
        (lambda t: {**t, "head.weight": t["head.weight"].mT}, r"head\.weight: expected \(5, 24\), got \(24, 5\)"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_displacements_that_do_not_fit_are_refused_with_both_sides(change, shown):
    model = tiny_vit()
    lin = linearize(model)
    with pytest.raises(InputError, match=shown):
        lin(images(1, model), Displacement(change(lin.displacement().tensors), lin.base, "tangent"))


def test_displacements_of_another_number_of_blocks_are_refused():
    model = tiny_vit()
    two = linearize(model, blocks=2).displacement()
    with pytest.raises(InputError, match=r"last 1 block.*blocks\.1\."):
        linearize(model, blocks=1)(images(1, model), two)


@pytest.mark.parametrize("blocks", [0, 4, -1, "two", 1.0, None])
def test_numbers_of_blocks_that_are_not_there(blocks):
    with pytest.raises(InputError, match=r"blocks: expected 1 to 3, or 'all', got"):
        linearize(tiny_vit(), blocks=blocks)


class GatedAttention(Attention):
    """Not the class whose rule is known, though it computes the same."""


SMALL = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}
PLAIN = "vit_tiny_patch16_224"
UNSUPPORTED = {
    "gated MLP": ("vit_giant_patch14_dinov2", {"img_size": 28}, r"blocks\.0\.mlp: .* got GluMlp"),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 28}, r"model: expected a timm VisionTransformer, got timm"),
    "rotary": ("vit_small_patch16_rope_224", {}, r"model: .* got timm\.models\.eva\.Eva"),
    "parallel": (PLAIN, {"block_fn": ParallelScalingBlock}, r"blocks\.0: .* got ParallelScalingBlock"),
    "post-norm": (PLAIN, {"block_fn": ResPostBlock}, r"blocks\.0: .* got ResPostBlock"),
    "differential": (PLAIN, {"attn_layer": "diff"}, r"blocks\.0\.attn: .* got DiffAttention"),
    "other attention": (PLAIN, {"attn_layer": GatedAttention}, r"blocks\.0\.attn: .* got GatedAttention"),
    "distilled gated": ("deit_tiny_distilled_patch16_224", {"act_layer": "prelu"}, r"mlp\.act: .* got PReLU"),
    "map pooling": ("vit_base_patch16_siglip_224", {"num_heads": 4}, r"model\.global_pool: .* got 'map'"),
    "max pooling": (PLAIN, {"global_pool": "max"}, r"model\.global_pool: .* got 'max'"),
    "RMS norm": (PLAIN, {"norm_layer": "rmsnorm"}, r"blocks\.0\.norm1: expected LayerNorm, got RmsNorm"),
    "norm without bias": (PLAIN, {"norm_layer": partial(nn.LayerNorm, bias=False)}, r"norm1: .* with weight and bias"),
    "learnt activation": (PLAIN, {"act_layer": "prelu"}, r"blocks\.0\.mlp\.act: .* got PReLU"),
    "no head": (PLAIN, {"num_classes": 0}, r"head: expected Linear, got Identity"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_models_without_rules_are_refused_by_the_path_of_the_layer(case):
    name, args, shown = UNSUPPORTED[case]
    model = timm.create_model(name, **{**SMALL, **args})
    with pytest.raises(InputError, match=shown) as caught:
        linearize(model)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet10t", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (1,), "num_heads": (3,), "embed_dim": 24}),
    ],
)
def test_other_architectures_are_refused(name, args):
    with pytest.raises(InputError, match=r"model: expected a timm VisionTransformer, got timm\.models\."):
        linearize(timm.create_model(name, **args))


def test_the_gate_of_attention_is_refused():
    model = tiny_vit()
    attention = model.blocks[1].attn
    attention.gate = nn.Linear(24, 24)
    with pytest.raises(InputError, match=r"blocks\.1\.attn: .* without a gate"):
        linearize(model)
