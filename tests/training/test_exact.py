"""A shard's exact component: centring, the empty shard, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from privshard.core.errors import InputError
from privshard.core.jobs import TrainingParams
from privshard.core.privacy import MechanismPlan
from privshard.training.shard import train_shard

IDS = [f"{name}-{number}" for name in "abc" for number in range(4)]
PARAMS = TrainingParams(lr=1.0, optimizer="exact", loss="square", weight_decay=0.05, layer_scales={"head.*": 0.5})
PLAN = MechanismPlan(
    unit="example", sample_rate=1.0, steps=2000, max_grad_norm=1.0, noise_multiplier=0.0, expected_units=1.0,
    delta=1e-5, accountant="rdp", mean_releases=1,
)  # fmt: skip


def train(method, shard, **changes):
    options = {"plan": PLAN, "params": PARAMS, "root_key": bytes(32), "max_rows": 8, **changes}
    rows = sorted(IDS) if shard.constants else []
    return train_shard(method, shard.constants, labels_B=shard.labels_B, unit_of_row=rows, **options).tensors


def objective(method, shard, tensors, mean):
    """The ridge problem, written down again: scaled coordinates, the head's input centred."""
    logits = method.logits(shard.constants, tensors).double()
    onehot = torch.nn.functional.one_hot(shard.labels_B, logits.shape[1])
    moved = {name: tensor.double() / (0.5 if name.startswith("head.") else 1.0) for name, tensor in tensors.items()}
    moved["head.bias"] = (tensors["head.bias"].double() + tensors["head.weight"].double() @ mean) / 0.5
    penalty = sum(tensor.square().sum() for tensor in moved.values())
    return float((logits - 15 * onehot).square().mean() + PARAMS.weight_decay / 2 * penalty)


@pytest.mark.parametrize("kind", ["class row", "head"])
def test_no_displacement_near_it_is_better(make_method, make_shard, kind):
    method, _ = make_method(kind)
    shard = make_shard(method, IDS)
    tensors = train(method, shard)
    mean = method.features(shard.constants).double().mean(0)
    best = objective(method, shard, tensors, mean)
    assert best < objective(method, shard, {name: 0 * tensor for name, tensor in tensors.items()}, mean)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-2, 1e-1):
        for _ in range(5):
            near = {n: t + size * t.std() * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
            assert objective(method, shard, near, mean) > best


def test_an_empty_shard_learns_nothing(make_method, make_shard):
    method, _ = make_method("class row")
    tensors = train(method, make_shard(method, []))
    assert tensors.keys() == method.shapes().keys()
    assert not any(tensor.any() for tensor in tensors.values())


def test_a_private_plan_is_refused(make_method, make_shard):
    method, _ = make_method("head")
    with pytest.raises(InputError, match="exact has no differential privacy"):
        train(method, make_shard(method, IDS), plan=replace(PLAN, noise_multiplier=1.0))
