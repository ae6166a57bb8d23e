"""Gradients of the adapter method: factors and `vmap(grad)` against one backward pass an example."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from adapters import ADAPTERS
from oracles import squared_norm, unit_gradients_by_loop
from tiny_vits import NUM_CLASSES, images, random_tensors, tiny_vit
from torch import Tensor

from privshard.adaptation.adapter import Adapter, FactoredAdapter
from privshard.adaptation.method import AdapterMethod
from privshard.core.errors import InputError
from privshard.core.method import LinearMethod, ParameterMethod, initial, learnt, origin
from privshard.models.vit import ViTView, freeze, view_vit

FAMILIES = ("vit", "deit3", "registers", "avg_pool", "no_class_token")
UNITS = torch.tensor([0, 0, 1, 2, 2])


class Plain:
    """The same adapter without factors, so that the method falls back on `vmap(grad)`."""

    def __init__(self, adapter: Adapter) -> None:
        self.name, self.space, self.first_block = adapter.name, adapter.space, adapter.first_block
        self.initial, self.changed = adapter.initial, adapter.changed
        self.displacement, self.num_parameters = adapter.displacement, adapter.num_parameters


def make(kind: str, family: str = "vit", **options) -> tuple[AdapterMethod, ViTView]:
    view = view_vit(freeze(tiny_vit(family, **options)))
    return AdapterMethod(view, ADAPTERS[kind](view)), view


def point(method: AdapterMethod, *, seed: int = 1) -> dict[str, Tensor]:
    """A point away from the start, in float64."""
    start = {name: tensor.double() for name, tensor in method.initial().items()}
    noise = random_tensors({name: tuple(tensor.shape) for name, tensor in start.items()}, seed=seed)
    return {name: tensor + 0.1 * noise[name] for name, tensor in start.items()}


def by_loop(method: AdapterMethod, view: ViTView, parameters: Mapping[str, Tensor], x: Tensor, r: Tensor):
    """One backward pass an example through the plain model, whose weights are set from the displacement."""
    out = []
    for image, cotangent_C in zip(x, r, strict=True):
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        constants = method.encode(image[None])
        logits = method._forward(leaves, constants["x"])
        grads = torch.autograd.grad((logits[0] * cotangent_C).sum(), list(leaves.values()))
        out.append(dict(zip(leaves, grads, strict=True)))
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("plain", [False, True])
def test_gradients_of_every_unit_are_those_of_one_backward_pass_an_example(kind: str, family: str, plain: bool):
    method, view = make(kind, family)
    if plain:
        assert not isinstance(Plain(method.adapter), FactoredAdapter)
        method = AdapterMethod(view, Plain(method.adapter))
    x, parameters = images(5, view.model), point(method)
    r = random_tensors({"r": (5, NUM_CLASSES)}, seed=3)["r"]
    slow = by_loop(method, view, parameters, x, r)
    logits, pullback = method.pull(method.encode(x), parameters)
    gradients = pullback(r)
    units = unit_gradients_by_loop(slow, [str(unit) for unit in UNITS.tolist()])
    torch.testing.assert_close(
        gradients.squared_norms(UNITS, 3), torch.tensor([squared_norm(unit) for unit in units.values()]).double()
    )
    each = gradients.squared_norms(torch.arange(5), 5)
    torch.testing.assert_close(each, torch.tensor([squared_norm(one) for one in slow]).double())
    for weights in (torch.ones(5), torch.tensor([0.0, 0.5, 1.0, 0.0, 2.0])):
        found = method.pull(method.encode(x), parameters)[1](r).weighted_sum(weights.double())
        assert found.keys() == parameters.keys()
        for name in parameters:
            wanted = sum(weight * one[name] for weight, one in zip(weights.double(), slow, strict=True))
            torch.testing.assert_close(found[name], wanted)
    torch.testing.assert_close(logits, method.logits(method.encode(x), method.displacement(parameters)))
    again, pull_back = method.pull_sum(method.encode(x), parameters)
    torch.testing.assert_close(again, logits)
    for name, total in pull_back(r).items():
        torch.testing.assert_close(total, sum(one[name] for one in slow))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_start_leaves_the_base_as_it_is_and_is_public(kind: str, family: str):
    method, view = make(kind, family)
    x = images(3, view.model)
    constants = method.encode(x)
    plain = view.model(x)
    torch.testing.assert_close(method.logits(constants, origin(method, device="cpu")), plain)
    torch.testing.assert_close(method.features(constants) @ view.head.weight.T + view.head.bias, plain)
    start = initial(method, device="cpu")
    assert {name: tensor.dtype for name, tensor in start.items()} == dict.fromkeys(start, torch.float32)
    again = initial(method, device="cpu")
    assert all(torch.equal(start[name], again[name]) for name in start)
    if method.space == "weight":
        assert all(not value.any() for value in learnt(method, start).values())


@pytest.mark.parametrize("kind", ADAPTERS)
def test_logits_are_those_of_the_model_with_the_displacement_added_to_its_weights(kind: str):
    method, view = make(kind)
    if method.space != "weight":
        pytest.skip("its displacement isn't added to weights")
    x, moved = images(3, view.model), method.displacement(point(method))
    assert {name: tuple(value.shape) for name, value in moved.items()} == method.shapes()
    values = {name: dict(view.model.named_parameters())[name] + value for name, value in moved.items()}
    wanted = torch.func.functional_call(view.model, values, (x,))
    torch.testing.assert_close(method.logits(method.encode(x), moved), wanted)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_centred_coordinates_reach_the_same_models(kind: str):
    method, view = make(kind)
    x, parameters = images(4, view.model), point(method)
    mean_D = random_tensors({"m": (view.model.embed_dim,)}, seed=5)["m"]
    centred = method.centered(mean_D)
    constants, r = method.encode(x), random_tensors({"r": (4, NUM_CLASSES)})["r"]
    logits, pullback = centred.pull(constants, parameters)
    back = centred.uncentered(parameters, mean_D)
    torch.testing.assert_close(method.logits(constants, method.displacement(back)), logits)
    found = pullback(r).weighted_sum(torch.ones(4).double())
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    grads = torch.autograd.grad((centred._forward(leaves, constants["x"]) * r).sum(), list(leaves.values()))
    for name, wanted in zip(leaves, grads, strict=True):
        torch.testing.assert_close(found[name], wanted)


def test_an_example_of_weight_zero_leaves_no_trace_even_where_it_is_not_finite():
    for plain in (False, True):
        method, view = make("bitfit")
        if plain:
            method = AdapterMethod(view, Plain(method.adapter))
        x, parameters = images(3, view.model), point(method)
        r = random_tensors({"r": (3, NUM_CLASSES)})["r"]
        broken = x.clone()
        broken[1] = float("nan")
        gradients = method.pull(method.encode(broken), parameters)[1](r)
        norms = gradients.squared_norms(torch.arange(3), 3)
        assert torch.isfinite(norms).tolist() == [True, False, True]
        found = gradients.weighted_sum(torch.tensor([1.0, 0.0, 1.0]).double())
        wanted = method.pull(method.encode(x[[0, 2]]), parameters)[1](r[[0, 2]]).weighted_sum(torch.ones(2).double())
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name])


def test_displacements_of_another_base_are_refused_by_name():
    method, view = make("bitfit")
    with pytest.raises(InputError, match=r"blocks\.9\.attn\.proj\.bias"):
        method.logits(method.encode(images(1, view.model)), {"blocks.9.attn.proj.bias": torch.zeros(24).double()})


def test_the_method_is_one_with_parameters_of_its_own():
    method, _ = make("bitfit")
    assert isinstance(method, ParameterMethod)
    assert not isinstance(method, LinearMethod)


@pytest.mark.parametrize("kind", ["bitfit", "full", "lora", "prompts"])
@pytest.mark.parametrize("plain", [False, True])
def test_half_precision_rounds_gradients_but_norms_are_those_of_what_is_summed(kind: str, plain: bool):
    method, view = make(kind, dtype=torch.float32)
    if plain:
        method = AdapterMethod(view, Plain(method.adapter))
    x, parameters = images(3, view.model), {name: value.float() for name, value in point(method).items()}
    r = random_tensors({"r": (3, NUM_CLASSES)}, dtype=torch.float32)["r"]
    units = torch.arange(3)
    exact = method.pull(method.encode(x), parameters)[1](r)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        constants = {name: value.bfloat16() for name, value in method.encode(x).items()}
        rough = method.pull(constants, parameters)[1](r)
    rough = rough.bounded()
    norms = rough.squared_norms(units, 3)
    torch.testing.assert_close(norms, exact.squared_norms(units, 3), rtol=0.1, atol=0)
    for row in range(3):
        one = rough.weighted_sum(torch.eye(3)[row])
        assert {value.dtype for value in one.values()} == {torch.float32}
        assert 0.8 * norms[row].item() < squared_norm(one) <= (1 + 1e-5) * norms[row].item()
