"""Merging is the rounded sum; what is taken out again is within the stated bound, and nothing better can be had."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_vits import images, random_tensors, tiny_vit

from privshard.adaptation.gift.adapter import GiftAdapter
from privshard.adaptation.gift.merge import merge_state, unmerge_state
from privshard.adaptation.gift.spec import GiftSpec
from privshard.core.errors import InputError
from privshard.models.vit import freeze, view_vit


def _state(rng, scale=1.0):
    return {"a": rng.standard_normal((64, 32)).astype(np.float32), "b": (scale * np.ones(7)).astype(np.float32)}


@pytest.mark.parametrize("form", ["compact", "paca"])
def test_merged_weights_are_the_model_with_its_residual_in_factors(form):
    model = freeze(tiny_vit(dtype=torch.float32))
    adapter = GiftAdapter(view_vit(model), GiftSpec(generator=form, rank=3, layers=("attn.q", "attn.v", "attn.proj")))
    start = adapter.initial(0)
    moved = random_tensors({name: tuple(value.shape) for name, value in start.items()}, dtype=torch.float32)
    theta = {name: start[name] + 0.2 * moved[name] for name in start}
    x = images(4, model)
    factors = adapter.gift.factors(theta)
    hooks = [
        layer.module.register_forward_hook(_in_factors(layer.rows, factors[layer.name]))
        for layer in adapter.gift.layers
    ]
    want = model(x)
    for hook in hooks:
        hook.remove()
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    displacement = {name: value.numpy() for name, value in adapter.displacement(theta).items()}
    plain = tiny_vit(dtype=torch.float32, num_classes=5).eval()
    plain.load_state_dict(
        {name: torch.from_numpy(value) for name, value in merge_state(state, displacement).items()}, strict=True
    )
    torch.testing.assert_close(plain(x), want, rtol=0, atol=1e-5)
    assert float((want - model(x)).abs().max()) > 1e-2


def _in_factors(rows, factors):
    def hook(module, inputs, output):
        out = output.clone()
        out[..., rows] += (inputs[0] @ factors.right_RI.mT) @ factors.left_OR.mT
        return out

    return hook


def test_merging_rounds_once_and_leaves_the_rest_bit_for_bit():
    rng = np.random.default_rng(0)
    state, moved = _state(rng), {"a": rng.standard_normal((64, 32)).astype(np.float32)}
    merged = merge_state(state, moved)
    want = (state["a"].astype(np.float64) + moved["a"]).astype(np.float32)
    assert merged["a"].tobytes() == want.tobytes()
    assert merged["b"] is state["b"]


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_unmerging_is_within_its_bound(size):
    rng = np.random.default_rng(0)
    state = _state(rng)
    moved = {"a": (size * rng.standard_normal((64, 32))).astype(np.float32)}
    back = unmerge_state(merge_state(state, moved), moved)
    error = np.abs(back.state["a"].astype(np.float64) - state["a"]).max()
    assert error <= back.bound
    assert back.bound < 5e-7 * max(1.0, size)
    assert error > 0 or size < 1
    assert back.state["b"].tobytes() == state["b"].tobytes()


def test_two_weights_can_give_one_merged_weight():
    state = {"a": np.array([1e-9, 2e-9], dtype=np.float32)}
    moved = {"a": np.ones(2, dtype=np.float32)}
    merged = merge_state(state, moved)["a"]
    assert merged[0] == merged[1] == 1.0
    assert unmerge_state({"a": merged}, moved).bound >= 2e-9


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        ({"c": np.zeros(3)}, r"c: absent against \(3,\)"),
        ({"b": np.zeros((2, 2))}, r"b: \(7,\) against \(2, 2\)"),
    ],
)
def test_a_displacement_that_does_not_fit_is_refused_with_both_sides(moved, message):
    state = _state(np.random.default_rng(0))
    for function in (merge_state, unmerge_state):
        with pytest.raises(InputError, match=message):
            function(state, moved)
