"""Per-layer scales: what they do to logits, gradients, clipping and the ridge."""

from __future__ import annotations

import pytest
import torch
from tiny_vits import images, random_tensors, tiny_vit

from privshard.core.errors import InputError
from privshard.core.method import pull
from privshard.models.vit import freeze, view_vit
from privshard.tangent.dual import Dual
from privshard.tangent.engine import tangent_engine
from privshard.training.scaled import scaled, unscaled
from privshard.training.solver import solve

SCALES = {"head.*": 0.3, "*attn*": 2.0}


@pytest.fixture
def parts():
    """(method, the same with scales, constants, a displacement) in double precision."""
    model = freeze(tiny_vit("deit3"))
    method = tangent_engine(view_vit(model), blocks=1)
    return method, scaled(method, SCALES), method.encode(images(4, model)), random_tensors(method.shapes())


def expected(tensors):
    factor = {name: 0.3 if name.startswith("head.") else 2.0 if "attn" in name else 1.0 for name in tensors}
    return {name: factor[name] * tensor for name, tensor in tensors.items()}


def test_it_acts_as_the_scaled_displacement(parts):
    method, other, constants, tensors = parts
    assert torch.equal(other.logits(constants, tensors), method.logits(constants, expected(tensors)))
    assert all(torch.equal(unscaled(other, tensors)[name], value) for name, value in expected(tensors).items())
    assert unscaled(method, tensors) == tensors
    assert scaled(method, {}) is method


def test_gradients_are_scaled_before_they_are_normed(parts):
    method, other, constants, tensors = parts
    cotangent = random_tensors({"c": (4, 5)})["c"]
    plain, found = method.gradients(constants, tensors, cotangent), other.gradients(constants, tensors, cotangent)
    for index in range(4):
        weight = torch.eye(4).double()[index]
        mine, theirs = found.weighted_sum(weight), expected(plain.weighted_sum(weight))
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-12, atol=1e-14)
        square = sum(value.square().sum() for value in theirs.values())
        torch.testing.assert_close(found.squared_norms(torch.arange(4), 4)[index], square)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_pullback_is_that_of_the_gradients_and_shares_the_primal(blocks, monkeypatch):
    model = freeze(tiny_vit("deit3"))
    method = tangent_engine(view_vit(model), blocks=blocks)
    other, constants = scaled(method, SCALES), method.encode(images(4, model))
    tensors, cotangent = random_tensors(method.shapes()), random_tensors({"c": (4, 5)})["c"]
    expected_logits = other.logits(constants, tensors)
    expected_sums = other.gradients(constants, tensors, cotangent).weighted_sum(torch.ones(4).double())
    passes = []
    plain = Dual.tail
    monkeypatch.setattr(Dual, "tail", lambda self, *given, **named: passes.append(1) or plain(self, *given, **named))
    logits, pullback = pull(other, constants, tensors)
    sums = pullback(cotangent).weighted_sum(torch.ones(4).double())
    assert len(passes) == (0 if blocks == 1 else 1)
    assert torch.equal(logits, expected_logits)
    for name, value in expected_sums.items():
        torch.testing.assert_close(sums[name], value, rtol=1e-12, atol=1e-14)


def test_centred_and_back_it_is_the_same_model(parts):
    method, other, constants, tensors = parts
    mean = method.features(constants).mean(0)
    back = other.uncentered(unscaled(other, tensors), mean)
    torch.testing.assert_close(other.centered(mean).logits(constants, tensors), method.logits(constants, back))


def test_a_common_scale_is_another_ridge(parts):
    method, _, constants, _ = parts
    options = {"labels_n": torch.tensor([0, 1, 2, 3]), "ids": list("abcd"), "loss": "square", "tolerance": 1e-9}
    one = solve(method, constants, ridge=0.1, **options)
    alike = scaled(method, {"*": 2.0})
    other = unscaled(alike, solve(alike, constants, ridge=0.4, **options).tensors)
    for name, value in one.tensors.items():
        torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-9)


def test_patterns_must_fit(parts):
    method = parts[0]
    with pytest.raises(InputError, match=r"nothing\.\* matches no parameter"):
        scaled(method, {"nothing.*": 2.0})
    with pytest.raises(InputError, match=r"one pattern for head.bias, got \*bias and head"):
        scaled(method, {"head.*": 2.0, "*bias": 1.0})
