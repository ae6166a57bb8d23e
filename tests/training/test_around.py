"""A method around a core: it is the inner method, from another starting point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_vits import images, random_tensors, tiny_vit

from privshard.core.errors import InputError
from privshard.core.jobs import TrainingParams
from privshard.core.method import pull
from privshard.core.privacy import MechanismPlan
from privshard.models.vit import freeze, view_vit
from privshard.privacy.mean import noisy_mean
from privshard.privacy.stream import ChaChaStream
from privshard.tangent.center import center_head
from privshard.tangent.engine import tangent_engine
from privshard.training.around import around
from privshard.training.head import HeadMethod
from privshard.training.shard import train_shard
from privshard.training.solver import solve
from privshard.training.step import clipped_sum
from privshard.training.units import Units

IDS = ["a", "b", "c", "d"]


@pytest.fixture(params=["head", "one block", "two blocks"])
def parts(request):
    """(method, core, constants, displacement) in double precision."""
    model = freeze(tiny_vit("deit3"))
    view = view_vit(model)
    blocks = {"one block": 1, "two blocks": 2}
    method = HeadMethod(view) if request.param == "head" else tangent_engine(view, blocks=blocks[request.param])
    core = random_tensors(method.shapes())
    return method, core, method.encode(images(4, model)), {name: 0.3 * x.flip(0) for name, x in core.items()}


def added(left, right):
    return {name: left[name] + right[name] for name in left}


def test_its_logits_are_those_of_core_plus_displacement(parts):
    method, core, constants, moved = parts
    other = around(method, core)
    zero = {name: torch.zeros_like(x) for name, x in core.items()}
    assert torch.equal(other.logits(constants, zero), method.logits(constants, core))
    assert torch.equal(other.logits(constants, moved), method.logits(constants, added(core, moved)))
    assert other.shapes() == method.shapes()
    assert around(method, {}) is method


def test_its_gradients_are_the_inner_ones(parts):
    method, core, constants, moved = parts
    cotangent, ones = random_tensors({"c": (4, 5)})["c"], torch.ones(4, dtype=torch.float64)
    plain = method.gradients(constants, moved, cotangent).weighted_sum(ones)
    logits, pullback = pull(around(method, core), constants, moved)
    torch.testing.assert_close(logits, method.logits(constants, added(core, moved)))
    for found in (around(method, core).gradients(constants, moved, cotangent), pullback(cotangent)):
        for name, value in found.weighted_sum(ones).items():
            torch.testing.assert_close(value, plain[name])


def test_centred_and_back_it_is_the_same_model(parts):
    method, core, constants, moved = parts
    mean = method.features(constants).mean(0)
    other = around(method, core)
    back = added(core, other.uncentered(moved, mean))
    torch.testing.assert_close(other.centered(mean).logits(constants, moved), method.logits(constants, back))


@pytest.mark.parametrize("center", [False, True])
def test_steps_are_those_of_the_inner_method_from_the_core(center):
    model = freeze(tiny_vit(dtype=torch.float32))
    method, labels = tangent_engine(view_vit(model), blocks=1), torch.tensor([0, 1, 2, 3])
    constants, core = method.encode(images(4, model)), random_tensors(method.shapes(), dtype=torch.float32)
    plan = MechanismPlan("example", 1.0, 3, 0.5, 0.0, 4.0, 1e-5, "rdp", mean_releases=int(center))
    params = TrainingParams(lr=0.1, average_from=1.0)
    common = {"labels_B": labels, "unit_of_row": IDS, "plan": plan, "params": params, "root_key": bytes(32)}
    found = train_shard(around(method, core), constants, **common).tensors
    inner, at = method, dict(core)
    if center:
        assert method.radius is not None
        stream = ChaChaStream(bytes(32), purpose="unused")
        mean = noisy_mean(method.features(constants), radius=method.radius, noise_multiplier=0.0, stream=stream)
        inner, at = method.centered(mean), center_head(core, mean)
    for _ in range(3):
        sums = clipped_sum(
            inner,
            constants,
            at,
            labels_B=labels,
            units=Units.of(IDS),
            taken=np.arange(4),
            loss="cross_entropy",
            max_grad_norm=None,
        )
        assert sums is not None
        at = {name: at[name] - 0.1 * sums[name] / 4 for name in at}
    at = method.uncentered(at, mean) if center else at
    for name, value in found.items():
        torch.testing.assert_close(core[name] + value, at[name], rtol=1e-3, atol=1e-4)


def test_the_optimum_is_pulled_to_the_core(parts):
    method, core, constants, _ = parts
    options = {"labels_n": torch.tensor([0, 1, 2, 3]), "ids": IDS, "loss": "square", "ridge": 1e6}
    found = solve(around(method, core), constants, **options).tensors
    size = sum(x.square().sum() for x in found.values()).sqrt()
    assert size < 1e-2 * sum(x.square().sum() for x in core.values()).sqrt()  # from zero it would go the core's length


@pytest.mark.parametrize("scales", [{}, {"head.*": 0.3}])
def test_a_core_that_is_the_optimum_already_is_no_error(scales):
    model = freeze(tiny_vit(dtype=torch.float32))
    method, labels = tangent_engine(view_vit(model), blocks=1), torch.tensor([0, 1, 2, 3])
    constants = method.encode(images(4, model))
    params = TrainingParams(lr=1.0, optimizer="exact", loss="square", weight_decay=1e-3, layer_scales=scales)
    plan = MechanismPlan("example", 1.0, 2000, 1.0, 0.0, 4.0, 1e-5, "rdp", mean_releases=1)
    common = {"labels_B": labels, "plan": plan, "params": params, "root_key": bytes(32), "unit_of_row": IDS}
    core = train_shard(method, constants, **common).tensors
    weaker = {**common, "params": replace(params, weight_decay=1e-2)}  # pulled to the core, not to zero
    found = train_shard(around(method, core), constants, **weaker).tensors
    size = {name: float(x.norm()) for name, x in (("core", flat(core)), ("found", flat(found)))}
    assert size["found"] < 0.05 * size["core"]


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_a_core_must_fit(parts):
    method, core, _, _ = parts
    with pytest.raises(InputError, match=r"head\.bias: expected \(5,\), got none"):
        around(method, {name: x for name, x in core.items() if name != "head.bias"})
