"""Tails against the whole model with changed weights, and against forward-mode differentiation."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_edits import make_tiny
from tiny_vits import FAMILIES, random_tensors
from torch.func import functional_call, jvp

from privshard.editing.functional import unfused
from privshard.editing.tail import EditedTail, TangentTail, features

SHAPED = [name for name in FAMILIES if name != "scale_norms"]


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_and_tail_are_the_whole_model_with_changed_weights(family):
    tiny = make_tiny(family)
    moved = random_tensors({slot.name: slot.shape for slot in tiny.slots}, seed=1)
    changed = copy.deepcopy(tiny.model)
    for name, delta in moved.items():
        dict(changed.named_parameters())[name].data += 0.1 * delta
    got = tiny.tail.logits(tiny.tokens, {name: 0.1 * delta.unsqueeze(0) for name, delta in moved.items()})
    torch.testing.assert_close(got, changed(tiny.images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_moved_is_the_model_itself(family):
    tiny = make_tiny(family)
    torch.testing.assert_close(tiny.tail.logits(tiny.tokens, {}), tiny.model(tiny.images), rtol=1e-10, atol=1e-10)
    assert torch.equal(tiny.view.head(features(tiny.view, tiny.tokens, first_block=1)), tiny.model(tiny.images))


def test_each_image_has_its_own_edit():
    tiny = make_tiny()
    moved = random_tensors({slot.name: (4, *slot.shape) for slot in tiny.slots}, seed=2)
    together = tiny.tail.logits(tiny.tokens, moved)
    for at in range(4):
        alone = tiny.tail.logits(tiny.tokens[at : at + 1], {name: delta[at : at + 1] for name, delta in moved.items()})
        torch.testing.assert_close(together[at : at + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["vit", "dinov2", "clip", "avg_pool", "no_qkv_bias"])
def test_the_tangent_tail_is_the_first_order_expansion(family):
    tiny = make_tiny(family)
    unfused(tiny.model)
    named = {name: tensor.detach() for name, tensor in tiny.model.named_parameters()}
    moved = random_tensors({slot.name: slot.shape for slot in tiny.slots}, seed=3)
    point = random_tensors({name: named[name].shape for name in _from_block_1(tiny)}, seed=4)
    direction = {name: torch.zeros_like(tensor) for name, tensor in named.items()} | point
    for name, delta in moved.items():
        direction[name] = direction[name] + delta
    primal, tangent = jvp(lambda weights: functional_call(tiny.model, weights, (tiny.images,)), (named,), (direction,))
    tail = TangentTail(tiny.view, 1, point)
    got = tail.logits(tiny.tokens, {name: delta.unsqueeze(0) for name, delta in moved.items()})
    torch.testing.assert_close(got, primal + tangent, rtol=1e-8, atol=1e-8)


def test_what_moves_is_added_to_the_edits_in_effect():
    tiny = make_tiny()
    first, second, third = tiny.slots[:3]
    held = random_tensors({slot.name: (1, *slot.shape) for slot in (first, second)}, seed=7)
    moved = random_tensors({slot.name: (4, *slot.shape) for slot in (second, third)}, seed=8)
    got = EditedTail(tiny.tail, held).logits(tiny.tokens, moved)
    both = {second.name: held[second.name] + moved[second.name]}
    assert torch.equal(got, tiny.tail.logits(tiny.tokens, {**held, **moved, **both}))
    assert torch.equal(EditedTail(tiny.tail, held).logits(tiny.tokens, {}), tiny.tail.logits(tiny.tokens, held))


def test_edits_of_a_linearized_model_compose_linearly():
    tiny = make_tiny()
    tail = TangentTail(tiny.view, 1)
    one, two = (random_tensors({slot.name: (1, *slot.shape) for slot in tiny.slots}, seed=seed) for seed in (5, 6))
    base = tail.logits(tiny.tokens, {})
    both = tail.logits(tiny.tokens, {name: one[name] + two[name] for name in one})
    apart = tail.logits(tiny.tokens, one) + tail.logits(tiny.tokens, two) - base
    torch.testing.assert_close(both, apart, rtol=1e-9, atol=1e-9)


def _from_block_1(tiny) -> list[str]:
    return [f"{part}.{name}" for part, module in tiny.view.parts(1).items() for name, _ in module.named_parameters()]
