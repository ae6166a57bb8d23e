"""Fixed copies of an example: its gradient is their mean, taken before clipping, in a step and in a whole training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import gradients_by_loop, linearized_by_jvp, squared_norm

from privshard.core.jobs import TrainingParams
from privshard.core.privacy import MechanismPlan
from privshard.training import shard
from privshard.training.loss import losses
from privshard.training.shard import train_shard

IDS = ["a-0", "a-1", "b-0", "c-0", "c-1", "c-2"]
COPIES = 3
BOUND = 0.7
PLAN = MechanismPlan("example", 1.0, 1, BOUND, 1.0, 6.0, 1e-5, "rdp")


def by_loop(method, model, made, units, bound):
    """sum_u clip(sum over the examples of u of the mean gradient over their copies), one copy at a time."""
    x = made.images_B.double()
    zero = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in method.shapes().items()}
    logits_BC = sum(linearized_by_jvp(model.double(), x, zero)).requires_grad_()
    (cotangent_BC,) = torch.autograd.grad(losses("cross_entropy", logits_BC, made.labels_B).sum(), logits_BC)
    each = gradients_by_loop(model, x, cotangent_BC, method.shapes())
    total = {name: torch.zeros_like(tensor) for name, tensor in zero.items()}
    norms = []
    for unit in sorted(set(units)):
        gradient = {
            name: sum(
                each[row * COPIES + copy][name] for row, u in enumerate(units) if u == unit for copy in range(COPIES)
            )
            / COPIES
            for name in zero
        }
        norms.append(squared_norm(gradient) ** 0.5)
        factor = 1.0 if bound is None else min(1.0, bound / norms[-1])
        total = {name: total[name] + factor * gradient[name] for name in total}
    return total, norms


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("unit", ["example", "subject"])
@pytest.mark.parametrize("kind", ["class row", "block", "head"])
def test_a_step_is_that_of_a_loop(make_method, make_shard, monkeypatch, kind, unit, private):
    method, model = make_method(kind)
    made = make_shard(method, [f"{name}.{copy}" for name in IDS for copy in range(COPIES)])
    labels_B = made.labels_B.reshape(-1, COPIES)[:, :1].expand(-1, COPIES).flatten().clone()
    made = replace(made, labels_B=labels_B)
    units = IDS if unit == "example" else [name.split("-")[0] for name in IDS]
    seen = []
    real = shard.PrivateOptimizer.release
    monkeypatch.setattr(shard.PrivateOptimizer, "release", lambda self, sums: seen.append(sums) or real(self, sums))
    train_shard(
        method,
        made.constants,
        labels_B=labels_B,
        unit_of_row=[name for name in units for _ in range(COPIES)],
        plan=PLAN if private else replace(PLAN, noise_multiplier=0.0),
        params=TrainingParams(lr=0.1),
        root_key=bytes(32),
        copies=COPIES,
    )
    expected, norms = by_loop(method, model, made, units, BOUND if private else None)
    assert max(norms) > BOUND  # clipping has something to do
    (sums,) = seen
    scale = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        assert float((sums[name].double() - tensor).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("kind", ["class row", "block"])
def test_many_copies_of_one_example_weigh_no_more_than_one(make_method, make_shard, monkeypatch, kind):
    method, _ = make_method(kind)
    made = make_shard(method, [f"a-0.{copy}" for copy in range(8)])
    seen = []
    monkeypatch.setattr(shard.PrivateOptimizer, "release", lambda self, sums: seen.append(sums))
    monkeypatch.setattr(shard.PrivateOptimizer, "check_complete", lambda self: None)
    train_shard(
        method,
        made.constants,
        labels_B=made.labels_B,
        unit_of_row=["a-0"] * 8,
        plan=replace(PLAN, max_grad_norm=0.01),
        params=TrainingParams(lr=0.1),
        root_key=bytes(32),
        copies=8,
    )
    assert squared_norm(seen[0]) ** 0.5 == pytest.approx(0.01, rel=1e-5)


def test_equal_copies_are_the_example_itself(make_method, make_shard):
    method, _ = make_method("class row")
    made = make_shard(method, IDS)
    repeated = {name: tensor.repeat_interleave(COPIES, 0) for name, tensor in made.constants.items()}
    options = {"plan": replace(PLAN, steps=3, mean_releases=1), "params": TrainingParams(lr=0.1), "root_key": bytes(32)}
    one = train_shard(method, made.constants, labels_B=made.labels_B, unit_of_row=IDS, **options)
    many = train_shard(
        method,
        repeated,
        labels_B=made.labels_B.repeat_interleave(COPIES),
        unit_of_row=list(np.repeat(IDS, COPIES)),
        copies=COPIES,
        **options,
    )
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(many.tensors[name], tensor, rtol=1e-4, atol=1e-6)
