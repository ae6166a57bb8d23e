"""Private training of adapters: against Opacus' per-example gradients, and for shards without anybody."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from adapters import ADAPTERS
from opacus.grad_sample import GradSampleModule
from tiny_vits import NUM_CLASSES, images, random_tensors, tiny_vit

from privshard.adaptation.full import FullAdapter
from privshard.adaptation.method import AdapterMethod
from privshard.core.jobs import TrainingParams
from privshard.core.privacy import MechanismPlan
from privshard.models.vit import freeze, view_vit
from privshard.privacy.stream import insecure_key
from privshard.training.shard import train_shard
from privshard.training.step import clipped_sum
from privshard.training.units import Units

PLAN = MechanismPlan(
    unit="example",
    sample_rate=1.0,
    steps=3,
    max_grad_norm=0.5,
    noise_multiplier=1.0,
    expected_units=4.0,
    delta=1e-5,
    accountant="rdp",
    mean_releases=1,
)


@pytest.mark.parametrize("family", ["vit", "avg_pool"])
def test_norms_and_sums_are_those_of_opacus(family: str):
    model = freeze(tiny_vit(family))
    view = view_vit(model)
    method = AdapterMethod(view, FullAdapter(view, blocks=1))
    parameters = {name: value.double() for name, value in method.initial().items()}
    x, r = images(4, model), random_tensors({"r": (4, NUM_CLASSES)})["r"]
    moving = copy.deepcopy(model)
    for name in parameters:
        moving.get_parameter(name).requires_grad_(True)
    wrapped = GradSampleModule(moving.train(), loss_reduction="sum")  # its hooks record in training mode alone
    (wrapped(x) * r).sum().backward()
    each = {name: moving.get_parameter(name).grad_sample for name in parameters}
    gradients = method.pull(method.encode(x), parameters)[1](r)
    wanted = sum(value.flatten(1).square().sum(1) for value in each.values())
    torch.testing.assert_close(gradients.squared_norms(torch.arange(4), 4), wanted)
    weights = torch.tensor([0.5, 1.0, 0.25, 2.0]).double()
    for name, total in gradients.weighted_sum(weights).items():
        torch.testing.assert_close(total, torch.tensordot(weights, each[name], dims=1))


@pytest.mark.parametrize("kind", ["bitfit", "full", "lora", "prompts"])
def test_a_shard_trains_and_an_empty_one_learns_noise_of_the_same_shape(kind: str):
    view = view_vit(freeze(tiny_vit(dtype=torch.float32)))
    method = AdapterMethod(view, ADAPTERS[kind](view))
    x = images(6, view.model)
    params = TrainingParams(lr=0.1)
    common = {"plan": PLAN, "params": params, "root_key": insecure_key(0, shard=0, attempt=0)}
    labels = torch.arange(6) % NUM_CLASSES
    ids = [f"row-{row}" for row in range(6)]
    found = train_shard(method, method.encode(x), labels_B=labels, unit_of_row=ids, **common)
    again = train_shard(method, method.encode(x), labels_B=labels, unit_of_row=ids, **common)
    empty = train_shard(method, None, labels_B=labels[:0], unit_of_row=[], **common)
    shapes = {name: tuple(value.shape) for name, value in found.tensors.items()}
    assert shapes == method.shapes() == {name: tuple(value.shape) for name, value in empty.tensors.items()}
    assert all(torch.equal(value, again.tensors[name]) for name, value in found.tensors.items())
    assert all(torch.isfinite(value).all() and value.any() for value in empty.tensors.values())
    assert any(not torch.equal(value, empty.tensors[name]) for name, value in found.tensors.items())


def test_constants_kept_in_half_precision_train_too():
    view = view_vit(freeze(tiny_vit(dtype=torch.float32)))
    method = AdapterMethod(view, ADAPTERS["lora"](view))
    constants = method.encode(images(6, view.model))
    common = {
        "labels_B": torch.arange(6) % NUM_CLASSES,
        "unit_of_row": [f"row-{row}" for row in range(6)],
        "plan": PLAN,
        "params": TrainingParams(lr=0.1),
        "root_key": insecure_key(0, shard=0, attempt=0),
    }
    whole = train_shard(method, constants, **common)
    half = train_shard(method, {"x": constants["x"].bfloat16()}, dtype=torch.bfloat16, **common)
    for name, value in whole.tensors.items():
        assert (half.tensors[name] - value).norm() < 0.05 * value.norm(), name


def test_without_a_norm_a_unit_that_is_not_finite_contributes_nothing():
    view = view_vit(freeze(tiny_vit(dtype=torch.float32)))
    method = AdapterMethod(view, ADAPTERS["gift"](view))
    moved = random_tensors({name: tuple(value.shape) for name, value in method.initial().items()}, dtype=torch.float32)
    parameters = {name: 0.1 * value for name, value in moved.items()}
    constants, labels = method.encode(images(5, view.model)), torch.arange(5)
    units = Units.of(["a", "a", "b", "c", "c"])

    def total(taken: list[int]) -> dict[str, torch.Tensor]:
        found = clipped_sum(
            method,
            constants,
            parameters,
            labels_B=labels,
            units=units,
            taken=np.array(taken),
            loss="cross_entropy",
            max_grad_norm=None,
        )
        assert found is not None
        return found

    parts, whole = [total([unit]) for unit in range(3)], total([0, 1, 2])
    close = {"rtol": 1e-4, "atol": 1e-5}
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(part[name] for part in parts), **close)
    constants["x"][4] = float("nan")
    for name, value in total([0, 1, 2]).items():
        torch.testing.assert_close(value, parts[0][name] + parts[1][name], **close)
