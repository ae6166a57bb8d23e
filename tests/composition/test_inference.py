"""Composed models: one displacement against the linearized model, many at once against one at a time."""

from __future__ import annotations

import pytest
import torch
from oracles import linearized_by_jvp
from tiny_vits import images, random_tensors, tiny_vit

from privshard.composition.inference import ComposedModel, logits_of_each, stacked
from privshard.core.errors import InputError
from privshard.models.stem import view_stem
from privshard.models.vit import freeze, view_vit
from privshard.tangent.block_engine import BlockEngine
from privshard.tangent.class_row import ClassRowEngine
from privshard.training.head import HeadMethod

KINDS = ("class row", "block", "whole", "head")


def make(kind, family="deit3"):
    model = freeze(tiny_vit(family))
    view = view_vit(model)
    engines = {"class row": lambda: ClassRowEngine(view), "head": lambda: HeadMethod(view)}
    engines["whole"] = lambda: BlockEngine(view, first_block=0, stem=view_stem(model))
    return engines.get(kind, lambda: BlockEngine(view, first_block=1))(), model


@pytest.mark.parametrize("kind", KINDS)
def test_a_composed_model_is_the_linearized_one(kind):
    method, model = make(kind)
    x, tensors = images(3, model), random_tensors(method.shapes())
    composed = ComposedModel(method, model=model, parts=[(1.0, tensors)])
    f0, df = linearized_by_jvp(model, x, tensors)
    torch.testing.assert_close(composed(x), f0 + df, rtol=1e-11, atol=1e-11)
    assert {name for name, _ in composed.named_parameters()} == {
        f"model.{name}" for name, _ in model.named_parameters()
    }
    assert len(dict(composed.named_buffers())) >= len(tensors)


def test_an_ensemble_is_the_weighted_mean_of_its_models():
    method, model = make("class row")
    x, each = images(3, model), [random_tensors(method.shapes(), seed=seed) for seed in range(2)]
    both = ComposedModel(method, model=model, parts=[(0.25, each[0]), (0.75, each[1])])
    one, other = (ComposedModel(method, model=model, parts=[(1.0, tensors)])(x) for tensors in each)
    torch.testing.assert_close(both(x), 0.25 * one + 0.75 * other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["deit3", "vit"])
def test_many_at_once_are_one_at_a_time(kind, family):
    method, model = make(kind, family)
    constants = method.encode(images(3, model))
    each = [random_tensors(method.shapes(), seed=seed) for seed in range(4)]
    found = logits_of_each(method, constants, stacked(each))
    assert found.shape == (4, 3, 5)
    for logits_BC, tensors in zip(found, each, strict=True):
        torch.testing.assert_close(logits_BC, method.logits(constants, tensors), rtol=1e-11, atol=1e-11)


def test_the_frozen_part_is_computed_once():
    method, model = make("block")
    constants = method.encode(images(3, model))
    each = [random_tensors(method.shapes(), seed=seed) for seed in range(6)]
    calls = []
    handle = model.blocks[2].mlp.act.register_forward_hook(lambda *_: calls.append(1))
    logits_of_each(method, constants, stacked(each))
    handle.remove()
    assert len(calls) == 1


def test_displacements_of_different_kinds_are_refused():
    with pytest.raises(InputError, match="at least one"):
        stacked([])
    with pytest.raises(InputError, match="same names and shapes, got 2"):
        stacked([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}])
