"""The method `head` against forward mode on the head alone, and a loop over examples."""

from __future__ import annotations

import pytest
import torch
from oracles import clipped_sum_by_loop, gradients_by_loop, linearized_by_jvp, squared_norm, unit_gradients_by_loop
from tiny_vits import FAMILIES, NUM_CLASSES, images, random_tensors, tiny_vit
from torch import nn

from privshard.models.vit import freeze, view_vit
from privshard.training.head import HeadMethod

NUM = 6
UNITS = "cabcca"


def make(family: str, *, bias: bool = True):
    """(method, model) in double precision."""
    model = tiny_vit(family)
    if not bias:
        model.head = nn.Linear(24, NUM_CLASSES, bias=False).double()
    freeze(model)
    return HeadMethod(view_vit(model)), model


def make_cotangent() -> torch.Tensor:
    return torch.randn(NUM, NUM_CLASSES, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_with_its_head_moved(family):
    method, model = make(family)
    x, tensors = images(NUM, model), random_tensors(method.shapes())
    constants = method.encode(x)
    f0, df = linearized_by_jvp(model, x, tensors)
    found = method.logits(constants, tensors)
    torch.testing.assert_close(found, f0 + df, rtol=1e-12, atol=1e-12)
    state = model.state_dict()
    moved = {name: state[name] + tensor for name, tensor in tensors.items()}
    torch.testing.assert_close(found, torch.func.functional_call(model, moved, (x,)), rtol=1e-12, atol=1e-12)


def test_the_head_alone_moves():
    method, model = make("vit")
    assert method.shapes() == {"head.weight": (NUM_CLASSES, 24), "head.bias": (NUM_CLASSES,)}
    assert {name: tuple(tensor.shape) for name, tensor in method.encode(images(2, model)).items()} == {
        "feature": (2, 24),
        "logits": (2, NUM_CLASSES),
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("units", ["abcdef", UNITS])
def test_norms_and_sums_are_those_of_a_loop(bias, units):
    method, model = make("vit", bias=bias)
    x, cotangent_BC = images(NUM, model), make_cotangent()
    constants, tensors = method.encode(x), random_tensors(method.shapes())
    f0, df = linearized_by_jvp(model, x, tensors)
    torch.testing.assert_close(method.logits(constants, tensors), f0 + df, rtol=1e-12, atol=1e-12)
    gradients = method.gradients(constants, tensors, cotangent_BC)
    loop = gradients_by_loop(model, x, cotangent_BC, method.shapes())
    names = sorted(set(units))
    by_unit = unit_gradients_by_loop(loop, units)
    found_U = gradients.squared_norms(torch.tensor([names.index(unit) for unit in units]), len(names))
    expected_U = torch.tensor([squared_norm(by_unit[name]) for name in names], dtype=torch.float64)
    torch.testing.assert_close(found_U, expected_U, rtol=1e-12, atol=0)
    expected = clipped_sum_by_loop(loop, float("inf"))
    found = gradients.weighted_sum(torch.ones(NUM).double())
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


def test_centred_coordinates_reach_the_same_models():
    method, model = make("vit")
    constants, tensors = method.encode(images(NUM, model)), random_tensors(method.shapes())
    mean_D = method.features(constants).mean(0)
    centred = method.centered(mean_D)
    assert isinstance(centred, HeadMethod)
    torch.testing.assert_close(
        centred.logits(constants, tensors),
        method.logits(constants, centred.uncentered(tensors, mean_D)),
        rtol=1e-12,
        atol=1e-12,
    )
    cotangent_BC = make_cotangent()
    found = centred.gradients(constants, tensors, cotangent_BC).weighted_sum(torch.ones(NUM).double())
    expected = cotangent_BC.mT @ (method.features(constants) - mean_D)
    torch.testing.assert_close(found["head.weight"], expected, rtol=1e-12, atol=1e-12)


def test_only_a_head_with_bias_after_a_norm_can_be_centred():
    assert make("vit")[0].radius == pytest.approx(make("vit")[1].norm.state_dict()["weight"].norm().item(), rel=0.3)
    assert make("vit", bias=False)[0].radius is None
    assert HeadMethod(view_vit(freeze(tiny_vit("vit", final_norm=False)))).radius is None
