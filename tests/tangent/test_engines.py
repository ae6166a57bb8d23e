"""Both engines against forward mode and a loop over examples, and against each other."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from oracles import clipped_sum_by_loop, gradients_by_loop, linearized_by_jvp, squared_norm, unit_gradients_by_loop
from tiny_vits import CLASS_ROW, FAMILIES, NUM_CLASSES, TWO_HEADS, images, random_tensors, tiny_vit

from privshard.core.errors import InputError
from privshard.models.stem import view_stem
from privshard.models.vit import freeze, view_vit
from privshard.privacy.clipping import clip_factors
from privshard.tangent import linearize, places
from privshard.tangent.block_engine import BlockEngine
from privshard.tangent.class_row import ClassRowEngine
from privshard.tangent.engine import tangent_engine

NUM = 6
# (engine, family, number of blocks)
CASES = [
    *(("class row", family, 1) for family in CLASS_ROW),
    *(("block", family, 2) for family in (*FAMILIES, *TWO_HEADS)),
    *(("block", family, blocks) for family in ("vit", "avg_pool") for blocks in (1, 3)),
    *(("whole", family, 3) for family in (*FAMILIES, *TWO_HEADS)),
]
UNITS = {
    "examples": "abcdef",
    "subjects in order": "aabbbc",
    "subjects interleaved": "cabcca",
    "one subject": "ssssss",
}


def make(kind: str, family: str, blocks: int = 1, *, dtype: torch.dtype = torch.float64):
    """(engine, model)."""
    model = freeze(tiny_vit(family, dtype=dtype))
    view = view_vit(model)
    stem = view_stem(model) if kind == "whole" else None
    engine = ClassRowEngine(view) if kind == "class row" else BlockEngine(view, first_block=3 - blocks, stem=stem)
    return engine, model


def make_cotangent(num: int = NUM, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(num, NUM_CLASSES, generator=torch.Generator().manual_seed(5)).to(dtype)


def positions(units: str) -> tuple[torch.Tensor, list[str]]:
    """The unit of each example as a number, and the names of the units in that order."""
    names = sorted(set(units))
    return torch.tensor([names.index(unit) for unit in units]), names


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Same names and shapes, entries within `tolerance` of the largest entry of that tensor or of 1/100 of them all."""
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in expected.items()}
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        scale = max(float(tensor.abs().max()), 0.01 * largest)
        assert float((found[name].double() - tensor.double()).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize(("kind", "family", "blocks"), CASES)
def test_logits_are_those_of_forward_mode(kind, family, blocks):
    engine, model = make(kind, family, blocks)
    x, tensors = images(3, model), random_tensors(engine.shapes())
    f0, df = linearized_by_jvp(model, x, tensors)
    found = engine.logits(engine.encode(x), tensors)
    assert not found.requires_grad
    assert float((found - f0 - df).abs().max()) < 1e-12 * float(df.abs().max())


@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS.keys())
@pytest.mark.parametrize(("kind", "family", "blocks"), CASES)
def test_norms_and_sums_are_those_of_a_loop(kind, family, blocks, units):
    engine, model = make(kind, family, blocks)
    x, cotangent_BC = images(NUM, model), make_cotangent()
    unit_B, names = positions(units)
    gradients = engine.gradients(engine.encode(x), random_tensors(engine.shapes()), cotangent_BC)

    loop = gradients_by_loop(model, x, cotangent_BC, engine.shapes())
    by_unit = unit_gradients_by_loop(loop, units)
    norms_U = torch.tensor([squared_norm(by_unit[name]) for name in names], dtype=torch.float64)
    squared_U = gradients.squared_norms(unit_B, len(names))
    torch.testing.assert_close(squared_U, norms_U, rtol=1e-12, atol=0)

    bound = float(norms_U.median().sqrt())  # some are clipped, some are not
    factor_U = clip_factors(squared_U, max_grad_norm=bound)
    assert_close(gradients.weighted_sum(factor_U[unit_B]), clipped_sum_by_loop(by_unit.values(), bound), 1e-12)


@pytest.mark.parametrize("units", ["abcdef", "cabcca"])
@pytest.mark.parametrize(("kind", "family", "blocks"), CASES)
def test_single_precision_clips_to_a_hundred_thousandth(kind, family, blocks, units):
    engine, model = make(kind, family, blocks, dtype=torch.float32)
    x, cotangent_BC = images(NUM, model), make_cotangent(dtype=torch.float32)
    unit_B, names = positions(units)
    gradients = engine.gradients(engine.encode(x), random_tensors(engine.shapes()), cotangent_BC)
    squared_U = gradients.squared_norms(unit_B, len(names))
    found = gradients.weighted_sum(clip_factors(squared_U, max_grad_norm=1.0)[unit_B])

    loop = gradients_by_loop(model.double(), x.double(), cotangent_BC.double(), engine.shapes())
    assert_close(found, clipped_sum_by_loop(unit_gradients_by_loop(loop, units).values(), 1.0), 1e-5)


@pytest.mark.parametrize("family", ["vit", "dinov2", "qk_norm", "avg_pool"])
def test_norms_by_gram_matrices_and_written_out(family):
    engine, model = make("block", family, 3)
    units = "cabcca"
    unit_B, names = positions(units)
    gradients = engine.gradients(engine.encode(images(NUM, model)), {}, make_cotangent())
    longest = max(units.count(name) for name in names)
    outer = [(place.b_BTGO, place.a_BTGI) for place in gradients.places if isinstance(place, places.Outer)]
    by_gram = [longest * b.shape[1] * (b.shape[-1] + a.shape[-1]) <= b.shape[-1] * a.shape[-1] for b, a in outer]
    assert any(by_gram)
    assert not all(by_gram)
    expected = sum(_norms_written_out(place, unit_B, len(names)) for place in gradients.places)
    torch.testing.assert_close(gradients.squared_norms(unit_B, len(names)), expected, rtol=1e-12, atol=0)


def _norms_written_out(place, unit_B: torch.Tensor, num_units: int) -> torch.Tensor:
    if isinstance(place, places.Direct):
        g_B = place.g_BP
    else:
        g_B = torch.einsum("btgo,btgi->bgoi", place.b_BTGO, place.a_BTGI).flatten(1)
    return torch.stack([g_B[unit_B == unit].sum(0).square().sum() for unit in range(num_units)])


@pytest.mark.parametrize("family", CLASS_ROW)
def test_the_two_engines_agree(family):
    row, model = make("class row", family)
    block, _ = make("block", family)
    x, cotangent_BC = images(NUM, model), make_cotangent()
    assert row.shapes() == block.shapes()
    tensors = random_tensors(row.shapes())
    row_constants, block_constants = row.encode(x), block.encode(x)
    torch.testing.assert_close(
        row.logits(row_constants, tensors), block.logits(block_constants, tensors), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(row.features(row_constants), block.features(block_constants), rtol=1e-12, atol=1e-12)
    one = row.gradients(row_constants, tensors, cotangent_BC)
    other = block.gradients(block_constants, tensors, cotangent_BC)
    unit_B, names = positions("cabcca")
    torch.testing.assert_close(
        one.squared_norms(unit_B, len(names)), other.squared_norms(unit_B, len(names)), rtol=1e-12, atol=0
    )
    weight_B = torch.tensor([0.5, 0.0, 1.0, -1.0, 2.0, 0.25], dtype=torch.float64)
    assert_close(one.weighted_sum(weight_B), other.weighted_sum(weight_B), 1e-12)


@pytest.mark.parametrize("family", ["vit", "deit3"])
def test_engines_and_the_linearized_model_agree(family):
    engine, model = make("class row", family)
    lin, x = linearize(model), images(2, model)
    displacement = lin.displacement()
    moved = type(displacement)(random_tensors(lin.shapes()), lin.base, "tangent")
    assert engine.shapes() == lin.shapes()
    torch.testing.assert_close(engine.logits(engine.encode(x), moved.tensors), lin(x, moved), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", [*FAMILIES, *TWO_HEADS])
@pytest.mark.parametrize("blocks", [1, 2, "all"])
def test_the_graph_decides_on_the_engine(family, blocks):
    engine = tangent_engine(view_vit(tiny_vit(family)), blocks=blocks)
    fits = family in CLASS_ROW and blocks == 1
    assert type(engine) is (ClassRowEngine if fits else BlockEngine)
    assert engine.shapes() == linearize(tiny_vit(family), blocks=blocks).shapes()


def test_the_class_row_form_needs_a_final_norm():
    model = freeze(tiny_vit("vit", final_norm=False))
    engine = tangent_engine(view_vit(model), blocks=1)
    assert type(engine) is BlockEngine
    x, tensors = images(2, model), random_tensors(engine.shapes())
    f0, df = linearized_by_jvp(model, x, tensors)
    torch.testing.assert_close(engine.logits(engine.encode(x), tensors), f0 + df, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "blocks", "overrides", "why"),
    [
        ("vit", 2, {}, "2 blocks are linearized"),
        ("vit", "all", {}, "embeddings and all blocks are linearized"),
        ("avg_pool", 1, {}, "the head reads a mean over tokens"),
        ("distilled", 1, {}, "head_dist reads the distillation token"),
        ("qk_norm", 1, {}, "blocks.2.attn.q_norm is another norm"),
        ("scale_norms", 1, {}, "blocks.2.attn.norm is another norm"),
        ("vit", 1, {"fc_norm": True}, "fc_norm is another norm"),
        ("vit", 1, {"final_norm": False}, "there is no final norm"),
    ],
)
def test_the_engine_says_why_it_was_taken(family, blocks, overrides, why):
    view = view_vit(freeze(tiny_vit(family, **overrides)))
    engine = tangent_engine(view, blocks=blocks)
    assert engine.engine == f"k-block ({why})"
    assert engine.centered(torch.zeros(24)).engine == engine.engine
    assert tangent_engine(view_vit(tiny_vit("registers")), blocks=1).engine == "class-row"


def test_a_model_of_one_block_takes_the_class_row_engine():
    view = view_vit(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_classes=2))
    assert type(tangent_engine(view, blocks=1)) is ClassRowEngine
    assert type(tangent_engine(view, blocks="all")) is BlockEngine  # the embeddings are not of its form
    with pytest.raises(InputError, match="blocks: expected 1 to 1"):
        tangent_engine(view, blocks=2)


@pytest.mark.parametrize(
    ("kind", "family", "blocks"), [("class row", "dinov2", 1), ("block", "qk_norm", 2), ("whole", "clip", 3)]
)
def test_centred_coordinates(kind, family, blocks):
    plain, model = make(kind, family, blocks)
    x, cotangent_BC = images(NUM, model), make_cotangent()
    constants, tensors = plain.encode(x), random_tensors(plain.shapes())
    torch.testing.assert_close(
        plain.features(constants),
        model.forward_head(model.forward_features(x), pre_logits=True),
        rtol=1e-12,
        atol=1e-12,
    )
    mean_D = plain.features(constants).mean(0)
    engine = plain.centered(mean_D)
    assert type(engine) is type(plain)
    same = engine.uncentered(tensors, mean_D)
    torch.testing.assert_close(engine.logits(constants, tensors), plain.logits(constants, same), rtol=1e-12, atol=1e-12)
    assert {name for name in tensors if not torch.equal(tensors[name], same[name])} == {"head.bias"}

    loop = gradients_by_loop(model, x, cotangent_BC, plain.shapes())
    for example, r_C in zip(loop, cotangent_BC, strict=True):
        example["head.weight"] = example["head.weight"] - torch.outer(r_C, mean_D)
    unit_B, names = positions("cabcca")
    by_unit = unit_gradients_by_loop(loop, "cabcca")
    gradients = engine.gradients(constants, tensors, cotangent_BC)
    expected_U = torch.tensor([squared_norm(by_unit[name]) for name in names], dtype=torch.float64)
    torch.testing.assert_close(gradients.squared_norms(unit_B, len(names)), expected_U, rtol=1e-12, atol=0)
    assert_close(gradients.weighted_sum(torch.ones(NUM).double()), clipped_sum_by_loop(loop, math.inf), 1e-12)


@pytest.mark.parametrize("kind", ["block", "whole"])
def test_the_feature_of_two_heads_is_the_models(kind):
    engine, model = make(kind, "distilled")
    x = images(2, model)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(engine.features(engine.encode(x)), expected, rtol=1e-12, atol=1e-12)


def test_the_radius_is_the_size_of_a_feature():
    engine, model = make("class row", "vit")
    expected = float((model.norm.weight.square().sum() + model.norm.bias.square().sum()).sqrt())
    assert engine.radius == pytest.approx(expected, rel=1e-14)
    sizes_B = engine.features(engine.encode(images(50, model))).norm(dim=1)
    assert 0.7 * engine.radius < sizes_B.mean() < 1.3 * engine.radius
    assert tangent_engine(view_vit(freeze(tiny_vit("distilled"))), blocks=1).radius is None
    headless = view_vit(freeze(tiny_vit("vit", final_norm=False)))
    assert tangent_engine(headless, blocks=1).radius is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("class row", "vit"),
        ("class row", "dinov2"),
        ("block", "qk_norm"),
        ("block", "distilled"),
        ("whole", "registers"),
    ],
)
def test_an_example_that_is_not_finite_does_not_reach_the_others(kind, family, bad):
    engine, model = make(kind, family)
    constants, cotangent_BC = engine.encode(images(NUM, model)), make_cotangent()
    unit_B = torch.arange(NUM)
    weight_B = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 2.0], dtype=torch.float64)
    clean = engine.gradients(constants, {}, cotangent_BC)
    norms_B, sums = clean.squared_norms(unit_B, NUM), clean.weighted_sum(weight_B)
    poisoned = {name: tensor.clone() for name, tensor in constants.items()}
    for tensor in poisoned.values():
        tensor[1] = bad
    gradients = engine.gradients(poisoned, {}, cotangent_BC)
    found_B = gradients.squared_norms(unit_B, NUM)
    others = unit_B != 1
    assert torch.equal(found_B[others], norms_B[others])
    assert not torch.isfinite(found_B[1])
    assert all(torch.equal(tensor, sums[name]) for name, tensor in gradients.weighted_sum(weight_B).items())


@pytest.mark.parametrize(("kind", "family"), [("class row", "vit"), ("class row", "registers"), ("block", "vit")])
def test_keys_have_no_gradient_for_their_bias(kind, family):
    engine, model = make(kind, family)
    x, cotangent_BC = images(NUM, model), make_cotangent()
    found = engine.gradients(engine.encode(x), {}, cotangent_BC).weighted_sum(torch.ones(NUM).double())
    loop = gradients_by_loop(model, x, cotangent_BC, engine.shapes())
    q, k, v = sum(example["blocks.2.attn.qkv.bias"] for example in loop).chunk(3)
    assert k.abs().max() < 1e-12 * min(q.abs().max(), v.abs().max())
    found_k = found["blocks.2.attn.qkv.bias"].chunk(3)[1]
    assert not found_k.any() if kind == "class row" else found_k.abs().max() < 1e-13


@pytest.mark.parametrize(("kind", "family"), [("class row", "dinov2"), ("block", "avg_pool")])
def test_constants_lead_with_examples_and_can_be_indexed(kind, family):
    engine, model = make(kind, family)
    constants, tensors = engine.encode(images(NUM, model)), random_tensors(engine.shapes())
    assert {len(tensor) for tensor in constants.values()} == {NUM}
    assert not any(tensor.requires_grad for tensor in constants.values())
    rows = torch.tensor([4, 1])
    some = engine.logits({name: tensor[rows] for name, tensor in constants.items()}, tensors)
    torch.testing.assert_close(some, engine.logits(constants, tensors)[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "family"), [("class row", "vit"), ("block", "vit")])
def test_gradients_do_not_touch_the_model_or_the_constants(kind, family):
    engine, model = make(kind, family, 1)
    constants = engine.encode(images(2, model))
    before = {name: tensor.clone() for name, tensor in constants.items()}
    with torch.no_grad():  # training runs without gradients; the engine switches on what it needs
        engine.gradients(constants, {}, make_cotangent(2)).weighted_sum(torch.ones(2).double())
    assert all(torch.equal(tensor, before[name]) for name, tensor in constants.items())
    assert not any(tensor.requires_grad for tensor in constants.values())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
