"""Learning edits against autograd with zeroed entries, a loop over edits, and torch's own RMSprop."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from privshard.core.errors import InputError
from privshard.editing.learn import LearnOptions, example_gradients, learn
from privshard.editing.masks import everything, gradient_scores, keep_top
from privshard.editing.tail import TangentTail


def masks_of(tiny, keep=0.2):
    return keep_top(gradient_scores(tiny.tail, tiny.tokens, tiny.labels, tiny.slots), keep, tiny.slots)


def test_gradients_are_autograds_on_the_whole_model(tiny):
    got = example_gradients(tiny.tail, tiny.tokens, tiny.labels, tiny.slots)
    model = copy.deepcopy(tiny.model).requires_grad_(True)
    for at in range(4):
        model.zero_grad()
        F.cross_entropy(model(tiny.images[at : at + 1]), tiny.labels[at : at + 1]).backward()
        for name, gradient in got.items():
            torch.testing.assert_close(gradient[at], model.get_parameter(name).grad, rtol=1e-8, atol=1e-11)


def test_an_edit_is_rmsprop_on_the_whole_model_with_zeroed_gradients(tiny):
    masks, options = masks_of(tiny), LearnOptions(lr=3e-3, steps=7, stop_early=False)
    got = learn(
        tiny.tail, tiny.tokens[:1], tiny.labels[:1], {n: m[:1] for n, m in masks.items()}, tiny.slots, options=options
    )
    model = copy.deepcopy(tiny.model).requires_grad_(True)
    weights = [model.get_parameter(slot.name) for slot in tiny.slots]
    optimizer = torch.optim.RMSprop(weights, lr=options.lr)
    for _ in range(options.steps):
        model.zero_grad()
        F.cross_entropy(model(tiny.images[:1]), tiny.labels[:1]).backward()
        for slot, weight in zip(tiny.slots, weights, strict=True):
            weight.grad *= slot.spread(masks[slot.name][:1])[0]
        optimizer.step()
    for slot, weight in zip(tiny.slots, weights, strict=True):
        expected = weight.detach() - tiny.model.get_parameter(slot.name)
        torch.testing.assert_close(got.moved[slot.name][0], expected, rtol=1e-6, atol=1e-10)


def test_what_the_mask_leaves_out_does_not_move_at_all(tiny):
    masks = masks_of(tiny)
    got = learn(tiny.tail, tiny.tokens, tiny.labels, masks, tiny.slots, options=LearnOptions(lr=1e-2, steps=20))
    for slot in tiny.slots:
        outside = got.moved[slot.name] * (1 - slot.spread(masks[slot.name]))
        assert not outside.any()
    assert any(delta.any() for delta in got.moved.values())


@pytest.mark.parametrize("space", ["weight", "tangent"])
def test_a_batch_of_edits_is_a_loop_over_them(tiny, space):
    tail = tiny.tail if space == "weight" else TangentTail(tiny.view, 1)
    masks, options = masks_of(tiny), LearnOptions(lr=3e-3, steps=40)
    together = learn(tail, tiny.tokens, tiny.labels, masks, tiny.slots, options=options)
    for at in range(4):
        row = slice(at, at + 1)
        alone = learn(
            tail, tiny.tokens[row], tiny.labels[row], {n: m[row] for n, m in masks.items()}, tiny.slots, options=options
        )
        assert alone.steps_B.tolist() == together.steps_B[row].tolist()
        for name, delta in alone.moved.items():
            torch.testing.assert_close(together.moved[name][row], delta, rtol=1e-6, atol=1e-9)


def test_edits_end_when_they_are_right_and_sure(tiny):
    masks = everything(tiny.slots, like=tiny.tokens, num=4)
    options = LearnOptions(lr=1e-2, steps=100, loss_below=0.3)
    got = learn(tiny.tail, tiny.tokens, tiny.labels, masks, tiny.slots, options=options)
    assert got.right_B.all()
    assert (got.loss_B <= 0.3).all()
    assert (got.steps_B < 100).all()
    assert (got.steps_B > 0).all()


def test_one_edit_for_several_images(tiny):
    masks = everything(tiny.slots, like=tiny.tokens)
    got = learn(
        tiny.tail,
        tiny.tokens,
        tiny.labels,
        masks,
        tiny.slots,
        together=True,
        options=LearnOptions(lr=1e-2, loss_below=0.3),
    )
    assert got.right_B.all()
    assert all(len(delta) == 1 for delta in got.moved.values())


def test_penalties_keep_the_displacement_small(tiny):
    masks = everything(tiny.slots, like=tiny.tokens, num=4)
    norms = []
    for extra in ({}, {"l1": 1.0}, {"l2": 10.0}):
        options = LearnOptions(lr=1e-3, steps=30, stop_early=False, **extra)
        moved = learn(tiny.tail, tiny.tokens, tiny.labels, masks, tiny.slots, options=options).moved
        norms.append(sum(float(delta.square().sum()) for delta in moved.values()))
    assert norms[1] < 0.5 * norms[0]
    assert norms[2] < 0.5 * norms[0]


@pytest.mark.parametrize("values", [{"lr": 0.0}, {"steps": 0}])
def test_options_that_learn_nothing_are_refused(values):
    with pytest.raises(InputError, match="expected"):
        LearnOptions(**values)
