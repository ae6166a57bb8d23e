"""Both forms against their definitions, the paper's parameter counts, and what is refused."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from tiny_vits import FAMILIES, random_tensors, tiny_vit

from privshard.adaptation.gift import paca
from privshard.adaptation.gift.generator import gift_on
from privshard.adaptation.gift.spec import GiftSpec
from privshard.core.errors import InputError
from privshard.models.vit import view_vit


def test_the_compact_form_is_w_times_one_plus_phi_psi():
    view = view_vit(tiny_vit())
    gift = gift_on(view, GiftSpec(rank=4, layers=("attn.v", "attn.proj")))
    theta = random_tensors(gift.shapes())
    factor_II = torch.eye(24, dtype=torch.float64) + theta["gift.all.phi"] @ theta["gift.all.psi"]
    residuals = gift.residuals(theta)
    for block in view.blocks:
        want = block.proj.weight @ factor_II
        torch.testing.assert_close(block.proj.weight + residuals[f"{block.name}.attn.proj.weight"], want)
        qkv = block.qkv.weight.clone()
        qkv[48:] = qkv[48:] @ factor_II
        torch.testing.assert_close(block.qkv.weight + residuals[f"{block.name}.attn.qkv.weight"], qkv)
        assert not residuals[f"{block.name}.attn.qkv.weight"][:48].any()


def _paca_by_loops(theta, weight_OI, *, depth):
    """The hyper-transformer one token, one cluster and one channel at a time."""
    weight_OI = weight_OI.detach()
    num, width = weight_OI.shape
    rms = math.sqrt(sum(float(value) ** 2 for value in weight_OI.flatten()) / weight_OI.numel())

    def position(row, channel):
        angle = row / 10_000 ** ((channel - channel % 2) / width)
        return math.sqrt(2) * rms * (math.sin(angle) if channel % 2 == 0 else math.cos(angle))

    def linear(name, vector):
        return theta[f"{name}.weight"] @ vector + theta[f"{name}.bias"]

    tokens = []
    for row in range(num):
        pe = torch.tensor([position(row, channel) for channel in range(width)], dtype=torch.float64)
        tokens.append(linear("reduce", weight_OI[row] + pe))
    assigned = []
    for block in range(depth):
        normed = [token / token.norm() for token in tokens]
        assigned = [1 / (1 + torch.exp(-linear(f"{block}.cluster", y))) for y in normed]
        z = [sum(c[m] * y for c, y in zip(assigned, normed, strict=True)) for m in range(len(assigned[0]))]
        for row, y in enumerate(normed):
            query = linear(f"{block}.query", y)
            scores = torch.stack([query @ linear(f"{block}.key", zm) / math.sqrt(len(y)) for zm in z])
            weights = torch.exp(scores - scores.max())
            weights = weights / weights.sum()
            mixed = sum(w * linear(f"{block}.value", zm) for w, zm in zip(weights, z, strict=True))
            tokens[row] = tokens[row] + linear(f"{block}.proj", mixed)
            hidden = linear(f"{block}.fc1", tokens[row] / tokens[row].norm())
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            tokens[row] = tokens[row] + linear(f"{block}.fc2", hidden)
    return torch.stack(tokens) @ theta["recover"], torch.stack(assigned)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_paca_form_is_its_definition(depth):
    view = view_vit(tiny_vit())
    gift = gift_on(view, GiftSpec(generator="paca", rank=3, clusters=4, depth=depth, ffn_ratio=2))
    theta = random_tensors(gift.shapes())
    mine = gift.own(theta, gift.groups[0])
    for block in view.blocks[:2]:
        residual, assigned = _paca_by_loops(mine, block.proj.weight, depth=depth)
        torch.testing.assert_close(gift.residuals(theta)[f"{block.name}.attn.proj.weight"], residual)
        found = gift.cluster_vectors(theta)[f"{block.name}.attn.proj"]
        torch.testing.assert_close(found, assigned - sum(assigned) / len(assigned))


def test_what_all_outputs_of_a_layer_share_is_in_no_map_of_the_paca_form():
    """Assignments are between 0 and 1: as they are, every map is mostly the sum of all outputs."""
    gift = gift_on(view_vit(tiny_vit()), GiftSpec(generator="paca", rank=3, clusters=4))
    for vectors in gift.cluster_vectors(random_tensors(gift.shapes())).values():
        shared = torch.full((7, len(vectors)), 50.0, dtype=vectors.dtype) * torch.arange(7)[:, None]
        assert float((shared @ vectors).abs().max()) < 1e-10 * float(shared.norm())
        assert float(vectors.abs().max()) > 1e-3


def test_the_cluster_vectors_of_the_compact_form_are_w_phi():
    view = view_vit(tiny_vit())
    gift = gift_on(view, GiftSpec(rank=3))
    theta = random_tensors(gift.shapes())
    want = view.blocks[2].proj.weight @ theta["gift.all.phi"]
    torch.testing.assert_close(gift.cluster_vectors(theta)["blocks.2.attn.proj"], want)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["compact", "paca"])
def test_every_residual_starts_at_exactly_zero(family, form):
    gift = gift_on(
        view_vit(tiny_vit(family, dtype=torch.float32)), GiftSpec(generator=form, rank=2, layers=("*",), sharing="kind")
    )
    residuals = gift.residuals(gift.initial(seed=0))
    assert len(residuals) == 12
    assert not any(value.any() for value in residuals.values())


def test_the_start_is_a_function_of_the_seed():
    gift = gift_on(view_vit(tiny_vit()), GiftSpec(rank=2))
    one, again, other = (gift.initial(seed=seed)["gift.all.phi"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 24_576),
        ({"layers": ("attn.q", "attn.k", "attn.v", "attn.proj")}, 24_576),
        ({"layers": ("attn.v", "attn.proj"), "sharing": "kind"}, 2 * 24_576),
        ({"sharing": "block"}, 12 * 24_576),
        ({"rank": 768}, 2 * 768 * 768),
    ],
)
def test_parameter_counts_are_the_papers(options, count):
    with torch.device("meta"):
        view = view_vit(timm.create_model("vit_base_patch16_224"))
    gift = gift_on(view, GiftSpec(**options))
    assert gift.num_parameters() == count
    share = count / sum(value.numel() for name, value in view.model.named_parameters() if not name.startswith("head."))
    assert options or f"{share:.3%}" == "0.029%"


@pytest.mark.parametrize(("layers", "shape"), [(("attn.proj",), r"\(24, 24\)"), (("mlp.fc2",), r"\(24, 96\)")])
def test_a_rank_above_the_width_is_refused(layers, shape):
    view = view_vit(tiny_vit())
    with pytest.raises(InputError, match=rf"the rank is 25 and blocks.0.{layers[0]} is {shape}"):
        gift_on(view, GiftSpec(rank=25, layers=layers))
    assert gift_on(view, GiftSpec(rank=24, layers=layers)).num_parameters() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "full"}, "expected one of compact, paca, got 'full'"),
        ({"rank": 0}, "method.rank: expected a whole number, 1 or more, got 0"),
        ({"clusters": 1.5}, "method.clusters: expected a whole number"),
        ({"depth": True}, "method.depth: expected a whole number"),
        ({"width": 3}, "method.width: unknown option of gift"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        GiftSpec.of(options)


def test_a_spec_survives_json():
    spec = GiftSpec.of({"layers": "attn.v", "rank": 3, "generator": "paca"})
    assert GiftSpec.of(spec.to_json()) == spec


@pytest.mark.parametrize("shape", [(5, 4), (3, 7)])
def test_positions_have_the_scale_of_the_weights(shape):
    weight = torch.randn(shape, dtype=torch.float64)
    waves = paca.positions(weight)
    assert waves.shape == shape
    assert torch.equal(waves[0, 0::2], torch.zeros_like(waves[0, 0::2]))
    if shape[1] % 2 == 0:  # sines and cosines come in pairs
        torch.testing.assert_close(waves.square().mean(), weight.square().mean())
