"""The clipped sum of a step against one gradient at a time."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from oracles import clipped_sum_by_loop, gradients_by_loop, linearized_by_jvp, squared_norm, unit_gradients_by_loop
from tiny_vits import random_tensors

from privshard.core.method import ROWS
from privshard.training import step
from privshard.training.loss import losses
from privshard.training.step import clipped_sum
from privshard.training.units import Units

IDS = [f"{subject}-{number}" for subject in "abcdefg" for number in range(1 + ord(subject) % 3)]
METHODS = ("class row", "block", "head")
EVERYONE = np.arange(len(set("abcdefg")))


def by_loop(
    method, model, shard, displacement, units: Units, taken, loss: str, bound: float
) -> dict[str, torch.Tensor]:
    """The same sum in double precision: logits by forward mode, gradients one example at a time."""
    model, x = model.double(), shard.images_B.double()
    tensors = {name: tensor.double() for name, tensor in displacement.items()}
    logits_BC = sum(linearized_by_jvp(model, x, tensors)).requires_grad_()
    (cotangent_BC,) = torch.autograd.grad(losses(loss, logits_BC, shard.labels_B).sum(), logits_BC)
    gradients = gradients_by_loop(model, x, cotangent_BC, method.shapes())
    owners = [next(u for u, rows in enumerate(units.members) if row in rows) for row in range(len(x))]
    by_unit = unit_gradients_by_loop(gradients, owners)
    return clipped_sum_by_loop([by_unit[unit] for unit in taken], bound)


def assert_close(found, expected, tolerance: float) -> None:
    """Entries within `tolerance` of the largest of that tensor, or of 1/100 of the largest of all."""
    assert found.keys() == expected.keys()
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        scale = max(float(tensor.abs().max()), 0.01 * largest)
        assert float((found[name].double() - tensor.double()).abs().max()) <= tolerance * scale, name


def run(method, shard, displacement, units, taken=EVERYONE, **changes):
    settings = {"loss": "cross_entropy", "max_grad_norm": 1.0, "labels_B": shard.labels_B}
    return clipped_sum(method, shard.constants, displacement, units=units, taken=taken, **{**settings, **changes})


@pytest.fixture
def prepare(make_method, make_shard):
    """kind -> (method, model, shard, displacement)."""

    def make(kind: str, family: str = "vit"):
        method, model = make_method(kind, family)
        shard = make_shard(method, IDS)
        scale = 0.02
        tensors = random_tensors(method.shapes(), dtype=torch.float32)
        return method, model, shard, {name: scale * tensor for name, tensor in tensors.items()}

    return make


@pytest.mark.parametrize("loss", ["cross_entropy", "square"])
@pytest.mark.parametrize("unit", ["example", "subject"])
@pytest.mark.parametrize(("kind", "family"), [("class row", "deit3"), ("block", "qk_norm"), ("head", "vit")])
def test_clipped_sums_are_those_of_a_loop(prepare, kind, family, unit, loss):
    method, model, shard, displacement = prepare(kind, family)
    units = Units.of(sorted(IDS) if unit == "example" else shard.subjects)
    taken = np.arange(0, len(units), 2)
    bound = 2.0 if loss == "cross_entropy" else 20.0
    found = run(method, shard, displacement, units, taken, loss=loss, max_grad_norm=bound)
    expected = by_loop(method, model, shard, displacement, units, taken, loss, bound)
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("kind", METHODS)
def test_subjects_whose_rows_are_apart(prepare, kind):
    method, model, shard, displacement = prepare(kind)
    units = Units.of([f"s{row % 3}" for row in range(len(IDS))])
    taken = np.arange(3)
    found = run(method, shard, displacement, units, taken)
    assert_close(found, by_loop(method, model, shard, displacement, units, taken, "cross_entropy", 1.0), 1e-5)


@pytest.mark.parametrize("kind", METHODS)
def test_without_a_norm_nothing_is_clipped(prepare, kind):
    method, model, shard, displacement = prepare(kind)
    units = Units.of(shard.subjects)
    found = run(method, shard, displacement, units, max_grad_norm=None)
    expected = by_loop(method, model, shard, displacement, units, EVERYONE, "cross_entropy", math.inf)
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("kind", METHODS)
def test_one_unit_never_contributes_more_than_the_norm(prepare, kind):
    method, _, shard, displacement = prepare(kind)
    units = Units.of(shard.subjects)
    norms = [squared_norm(run(method, shard, displacement, units, np.array([u]), max_grad_norm=0.5)) for u in EVERYONE]
    assert all(norm <= 0.5**2 * (1 + 1e-5) for norm in norms)
    assert max(norms) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("max_rows", [1, 2, 5])
@pytest.mark.parametrize("kind", METHODS)
def test_batches_change_only_rounding(prepare, kind, max_rows):
    method, _, shard, displacement = prepare(kind)
    units = Units.of(shard.subjects)
    found = run(method, shard, displacement, units, max_rows=max_rows)
    assert_close(found, run(method, shard, displacement, units), 1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("max_grad_norm", [1.0, None])
@pytest.mark.parametrize("kind", METHODS)
def test_a_unit_that_is_not_finite_contributes_nothing(prepare, kind, max_grad_norm, bad):
    method, _, shard, displacement = prepare(kind)
    units = Units.of(shard.subjects)
    expected = run(method, shard, displacement, units, np.delete(EVERYONE, 3), max_grad_norm=max_grad_norm)
    for tensor in shard.constants.values():
        tensor[units.members[3][-1]] = bad  # one of its examples is enough
    found = run(method, shard, displacement, units, max_grad_norm=max_grad_norm)
    assert_close(found, expected, 1e-5)


def test_nobody_taken_gives_none(prepare):
    method, _, shard, displacement = prepare("head")
    assert run(method, shard, displacement, Units.of(shard.subjects), np.zeros(0, dtype=int)) is None


def test_the_whole_shard_in_one_batch_is_not_copied(prepare, monkeypatch):
    method, _, shard, displacement = prepare("head")
    seen = []
    monkeypatch.setattr(
        method, "logits", lambda constants, d, plain=method.logits: seen.append(constants) or plain(constants, d)
    )
    run(method, shard, displacement, Units.of(sorted(IDS)), np.arange(len(IDS)))
    run(method, shard, displacement, Units.of(sorted(IDS)), np.arange(1, len(IDS)))
    assert seen[0] is shard.constants
    assert len(next(iter(seen[1].values()))) == len(IDS) - 1


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("unit", ["example", "subject"])
def test_half_precision_changes_rounding_but_never_the_bound(prepare, kind, unit):
    method, _, shard, displacement = prepare(kind)
    units = Units.of(sorted(IDS) if unit == "example" else shard.subjects)
    bound = 0.05
    for name in method.wide & shard.constants.keys():
        shard.constants[name] = shard.constants[name].bfloat16()
    for one in range(len(units)):
        found = run(method, shard, displacement, units, np.array([one]), max_grad_norm=bound, dtype=torch.bfloat16)
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert squared_norm(found) ** 0.5 <= bound * (1 + 1e-5)
    rough = run(method, shard, displacement, units, np.arange(len(units)), dtype=torch.bfloat16)
    for name in method.wide & shard.constants.keys():
        shard.constants[name] = shard.constants[name].float()
    exact = run(method, shard, displacement, units, np.arange(len(units)))
    difference = {name: rough[name] - exact[name] for name in exact}
    assert squared_norm(difference) ** 0.5 <= 0.05 * squared_norm(exact) ** 0.5


@pytest.mark.parametrize(
    ("kind", "dtype", "unit"),
    [
        ("class row", torch.bfloat16, "subject"),
        pytest.param("class row", torch.float32, "example", marks=pytest.mark.slow),
        pytest.param("block", torch.bfloat16, "subject", marks=pytest.mark.slow),
        pytest.param("whole", torch.bfloat16, "subject", marks=pytest.mark.slow),
    ],
)
def test_both_graphs_trace(prepare, monkeypatch, kind, dtype, unit):
    """What torch.compile would fuse, run as traced: the graphs are right, whoever generates their code."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(step, "_compiled", cache(lambda function: torch.compile(function, backend=count)))
    method, _, shard, displacement = prepare(kind)
    units = Units.of(sorted(IDS) if unit == "example" else shard.subjects)
    for name in method.wide & shard.constants.keys():
        shard.constants[name] = shard.constants[name].to(dtype)
    for taken in (np.arange(len(units)), np.arange(1, len(units), 2)):
        expected = run(method, shard, displacement, units, taken, dtype=dtype)
        assert_close(run(method, shard, displacement, units, taken, dtype=dtype, compile=True), expected, 1e-6)
    assert len(graphs) >= 2


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a compiler of C++, minutes of it on a busy machine
@pytest.mark.parametrize("kind", ["class row", "block"])
def test_compiled(prepare, kind):
    method, _, shard, displacement = prepare(kind)
    units = Units.of(sorted(IDS))
    expected = run(method, shard, displacement, units, np.arange(len(units)))
    assert_close(run(method, shard, displacement, units, np.arange(len(units)), compile=True), expected, 1e-5)


@pytest.mark.parametrize("kind", ["class row"])
def test_rows_that_are_only_named(prepare, kind):
    method, _, shard, displacement = prepare(kind)
    rows = torch.tensor([5, 0, 3])
    cotangent_BC = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    copied = {name: tensor[rows] for name, tensor in shard.constants.items()}
    named = {name: tensor if name in method.indexed else tensor[rows] for name, tensor in shard.constants.items()}
    named[ROWS] = rows
    assert named["n1"] is shard.constants["n1"]
    torch.testing.assert_close(method.logits(named, displacement), method.logits(copied, displacement))
    found, expected = (method.gradients(each, displacement, cotangent_BC) for each in (named, copied))
    weight_B = torch.ones(3)
    assert_close(found.weighted_sum(weight_B), expected.weighted_sum(weight_B), 1e-6)


def test_another_shard_traces_nothing_new(prepare, monkeypatch):
    """Shards of one base are centred by other means; what was compiled for one serves the next."""
    torch._dynamo.reset()
    graphs = []
    monkeypatch.setattr(
        step,
        "_compiled",
        cache(lambda function: torch.compile(function, backend=lambda graph, _: graphs.append(graph) or graph.forward)),
    )
    method, _, shard, displacement = prepare("class row")
    units = Units.of(sorted(IDS))
    seen = []
    for mean in (0.1, 0.2, 0.3):
        centred = method.centered(torch.full((24,), mean))
        run(centred, shard, displacement, units, np.arange(len(units)), compile=True)
        seen.append(len(graphs))
    assert seen[0] == seen[2] > 0
