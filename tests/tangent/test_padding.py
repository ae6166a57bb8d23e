"""Tokens padded to aligned lengths against tokens as they are."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_vits import FAMILIES, NUM_CLASSES, TWO_HEADS, images, random_tensors, tiny_vit

from privshard.models.stem import view_stem
from privshard.models.vit import freeze, view_vit
from privshard.tangent import rules
from privshard.tangent.block_engine import BlockEngine
from privshard.tangent.dual import Dual
from privshard.tangent.padding import lengthened, padded_length, token_multiple
from privshard.tangent.places import Outer, Places

NUM = 4
DEPTH = 3
# (family, number of blocks or "all")
CASES = [*((family, "all") for family in (*FAMILIES, *TWO_HEADS)), ("vit", 1), ("qk_norm", 2), ("avg_pool", 1)]
UNITS = {"example": (None, NUM), "subject": (torch.tensor([1, 0, 1, 1]), 2)}


def make(family: str, blocks: int | str, *, dtype: torch.dtype = torch.float64):
    """(multiple -> engine, model)."""
    model = freeze(tiny_vit(family, dtype=dtype))
    view, stem = view_vit(model), view_stem(model) if blocks == "all" else None
    first = 0 if blocks == "all" else DEPTH - int(blocks)
    return lambda multiple: BlockEngine(view, first_block=first, stem=stem, multiple=multiple), model


def num_tokens(places: Places) -> set[int]:
    """How many tokens meet the weights of queries, keys and values."""
    return {place.b_BTGO.shape[1] for place in places.places if isinstance(place, Outer) and "qkv" in place.name}


def cotangents(*, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(NUM, NUM_CLASSES, generator=torch.Generator().manual_seed(5)).to(dtype)


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-12) -> None:
    """Within `tolerance` of the largest entry."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_padding_changes_nothing(family, blocks):
    make_engine, model = make(family, blocks)
    plain, padded = make_engine(1), make_engine(8)
    constants, tensors = plain.encode(images(NUM, model)), random_tensors(plain.shapes())
    assert all(torch.equal(tensor, constants[name]) for name, tensor in padded.encode(images(NUM, model)).items())
    assert_same(padded.features(constants), plain.features(constants))
    (expected_BC, back), (found_BC, padded_back) = (each.pull(constants, tensors) for each in (plain, padded))
    assert_same(found_BC, expected_BC)
    expected, found = back(cotangents()), padded_back(cotangents())
    (unpadded,) = num_tokens(expected)
    assert num_tokens(found) == {padded_length(unpadded, 8)} != {unpadded}

    for unit_B, num_units in UNITS.values():
        assert_same(found.squared_norms(unit_B, num_units), expected.squared_norms(unit_B, num_units))
    weight_B = torch.tensor([0.5, 0.0, 1.0, -1.0], dtype=torch.float64)
    sums, padded_sums = expected.weighted_sum(weight_B), found.weighted_sum(weight_B)
    assert sums.keys() == padded_sums.keys()
    largest = max(float(total.abs().max()) for total in sums.values())
    for name, total in sums.items():  # biases of keys have no gradient but rounding's
        torch.testing.assert_close(padded_sums[name], total, rtol=1e-12, atol=1e-12 * largest)


@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_the_cotangent_of_the_input_has_its_length(family, blocks):
    model = freeze(tiny_vit(family))
    view, stem = view_vit(model), view_stem(model) if blocks == "all" else None
    first = 0 if blocks == "all" else DEPTH - int(blocks)
    x = images(NUM, model)
    x = view.tokens(x, first_block=first) if stem is None else stem.patches(x)
    found = []
    for multiple in (1, 8):
        _, _, pull = Dual([], multiple=multiple).evaluate(view, x, first_block=first, stem=stem)
        found.append(pull(cotangents(), lambda *_: None))
    assert found[0].shape[1] == x.shape[1]
    assert_same(found[1], found[0])


@pytest.mark.parametrize("family", ["qk_norm", "scale_norms", "distilled", "avg_pool", "registers"])
def test_what_is_padded_has_no_part_in_a_gradient(family):
    """In half precision too, where the slack of rounding counts as well: cotangents behind are exactly zero."""
    make_engine, model = make(family, 2, dtype=torch.bfloat16)
    engine = make_engine(8)
    constants = engine.encode(images(NUM, model))
    length = constants["tokens"].shape[1]
    places = engine.gradients(constants, {}, cotangents(dtype=torch.bfloat16))
    cut = []
    for place in places.places:
        if isinstance(place, Outer) and place.b_BTGO.shape[1] > 2:
            assert place.b_BTGO.shape[1] == padded_length(length, 8)
            assert not place.b_BTGO[:, length:].any()
            assert torch.isfinite(place.a_BTGI).all()
            place = Outer(place.name, place.b_BTGO[:, :length], place.a_BTGI[:, :length], place.shape)
        cut.append(place)
    for unit_B, num_units in UNITS.values():
        expected = Places(cut).squared_norms(unit_B, num_units)
        torch.testing.assert_close(places.squared_norms(unit_B, num_units), expected, rtol=1e-5, atol=0)


def test_a_norm_that_divides_by_nothing_is_padded_too():
    """Rows of zeros have no length to be divided by; rows that repeat a token have its."""
    make_engine, model = make("qk_norm", "all")
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 0.0
    plain, padded = make_engine(1), make_engine(8)
    constants, tensors = plain.encode(images(NUM, model)), random_tensors(plain.shapes())
    (expected_BC, expected), (found_BC, found) = (each.pull(constants, tensors) for each in (plain, padded))
    assert_same(found_BC, expected_BC)
    assert_same(found(cotangents()).squared_norms(None, NUM), expected(cotangents()).squared_norms(None, NUM))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_example_that_is_not_finite_stays_alone(bad):
    make_engine, model = make("avg_pool", 2)
    engine = make_engine(8)
    constants = engine.encode(images(NUM, model))
    weight_B = torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    expected = engine.gradients(constants, {}, cotangents()).weighted_sum(weight_B)
    constants["tokens"][1, -1] = bad
    gradients = engine.gradients(constants, {}, cotangents())
    assert torch.isfinite(gradients.squared_norms(None, NUM)).tolist() == [True, False, True, True]
    assert all(torch.equal(total, expected[name]) for name, total in gradients.weighted_sum(weight_B).items())


def test_keys_that_are_padding_have_no_probability():
    q, k, v = (torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    probs, out = rules.softmax_attention(q, 9 * k, v, 0.5, num_keys=5)
    assert not probs[..., 5:].any()
    expected, expected_out = rules.softmax_attention(q, 9 * k[:, :, :5], v[:, :, :5], 0.5)
    torch.testing.assert_close(probs[..., :5], expected)
    torch.testing.assert_close(out, expected_out)
    assert torch.equal(rules.softmax_attention(q, k, v, 0.5, num_keys=8)[0], rules.softmax_attention(q, k, v, 0.5)[0])


def test_lengths():
    x_BND = torch.arange(6.0).reshape(1, 3, 2)
    assert lengthened(x_BND, 5)[0].tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert [padded_length(n, 8) for n in (1, 8, 197, 200, 257)] == [8, 8, 200, 200, 264]


def test_only_half_precision_on_a_gpu_is_padded():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert {token_multiple(gpu, dtype) for dtype in (torch.bfloat16, torch.float16)} == {8}
    assert {token_multiple(cpu, dtype) for dtype in (torch.bfloat16, torch.float32)} == {1}
    assert {token_multiple(gpu, dtype) for dtype in (torch.float32, torch.float64)} == {1}


def test_the_engine_asks_what_suits_its_tokens(monkeypatch):
    make_engine, model = make("vit", 1)
    engine, asked = make_engine(None), []
    constants = engine.encode(images(NUM, model))
    assert num_tokens(engine.gradients(constants, {}, cotangents())) == {5}

    def eight(device: torch.device, dtype: torch.dtype) -> int:
        asked.append((device.type, dtype))
        return 8

    monkeypatch.setattr("privshard.tangent.block_engine.token_multiple", eight)
    assert num_tokens(engine.gradients(constants, {}, cotangents())) == {8}
    assert asked == [("cpu", torch.float64)]
    centred = make_engine(16).centered(torch.zeros(24))
    assert num_tokens(centred.gradients(constants, {}, cotangents())) == {16}


@pytest.mark.slow
def test_no_graph_breaks():
    make_engine, model = make("avg_pool", 1, dtype=torch.float32)
    constants = make_engine(1).encode(images(NUM, model))
    tensors = random_tensors(make_engine(1).shapes(), dtype=torch.float32)
    r_BC = cotangents(dtype=torch.float32)
    for multiple in (1, 8):
        engine = make_engine(multiple)

        def norms(engine=engine):
            return engine.pull(constants, tensors)[1](r_BC).squared_norms(None, NUM)

        torch._dynamo.reset()
        found = torch.compile(norms, backend="eager", fullgraph=True)()
        assert_same(found, norms(), 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", ["vit", "avg_pool"])
def test_on_a_gpu(family, compiled):
    """197 tokens in bf16: what the engine takes by itself is padded, and as near to double precision as without."""
    torch._dynamo.reset()
    model = freeze(tiny_vit(family, img_size=224)).cuda()
    view, stem, x = view_vit(model), view_stem(model), images(NUM, model).cuda()
    exact = BlockEngine(view, first_block=0, stem=stem, multiple=1)
    tensors = {name: 0.01 * t.cuda() for name, t in random_tensors(exact.shapes()).items()}
    constants, weight_B = exact.encode(x), torch.ones(NUM, device="cuda")
    r_BC = cotangents().cuda()
    expected_BC, back = exact.pull(constants, tensors)
    expected = back(r_BC)
    norms_B, sums = expected.squared_norms(None, NUM).sqrt(), expected.weighted_sum(weight_B.double())

    model.float()
    rough = {name: tensor.bfloat16() for name, tensor in constants.items()}
    moved = {name: tensor.float() for name, tensor in tensors.items()}
    for multiple, length in ((1, 197), (None, 200)):
        engine = BlockEngine(view, first_block=0, stem=stem, multiple=multiple)

        def step(engine=engine):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                logits_BC, back = engine.pull(rough, moved)
                gradients = back(r_BC.float())
            return logits_BC, gradients, gradients.squared_norms(None, NUM).sqrt(), gradients.weighted_sum(weight_B)

        logits_BC, gradients, found_B, found = torch.compile(step)() if compiled else step()
        assert num_tokens(gradients) == {length}
        assert_same(logits_BC.double(), expected_BC, 0.05)
        assert_same(found_B.double(), norms_B, 0.05)
        error = math.hypot(*(float((found[name].double() - total).norm()) for name, total in sums.items()))
        assert error < 0.05 * math.hypot(*(float(total.norm()) for total in sums.values()))
