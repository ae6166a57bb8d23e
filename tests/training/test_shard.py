"""A shard's training: against a slow DP-SGD, bit for bit where it promises bits, and what removing a row changes."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import clipped_sum_by_loop, gradients_by_loop, linearized_by_jvp, unit_gradients_by_loop
from torch import Tensor

from privshard.core.jobs import TrainingParams
from privshard.core.privacy import MechanismPlan
from privshard.privacy.mean import noisy_mean
from privshard.privacy.sampling import PoissonSampler
from privshard.privacy.stream import ChaChaStream, derive_key, insecure_key
from privshard.training.loss import losses
from privshard.training.shard import _unit_features, train_shard
from privshard.training.units import Units

IDS = [f"{subject}-{number}" for subject in "abcdefgh" for number in range(1 + ord(subject) % 3)]
PLAN = MechanismPlan("subject", 0.5, 4, 1.0, 0.7, 4.0, 1e-5, "rdp")
PARAMS = TrainingParams(lr=0.2)
KEY = insecure_key(7, shard=0, attempt=0)
METHODS = ("class row", "block", "head")


def units_of(shard, plan: MechanismPlan, ids=IDS) -> list[str]:
    return list(shard.subjects) if plan.unit == "subject" else sorted(ids)


def train(method, shard, *, plan=PLAN, params=PARAMS, key=KEY, ids=IDS, **options) -> dict[str, Tensor]:
    trained = train_shard(
        method,
        shard.constants,
        labels_B=shard.labels_B,
        unit_of_row=units_of(shard, plan, ids),
        plan=plan,
        params=params,
        root_key=key,
        **options,
    )
    return trained.tensors


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def by_loop(method, model, shard, plan: MechanismPlan, params: TrainingParams) -> dict[str, Tensor]:
    """DP-SGD as its definition reads: double precision, one example's gradient at a time, torch's own optimizer."""
    model, x = model.double(), shard.images_B.double()
    units = units_of(shard, plan)
    names = sorted(set(units))
    stream = ChaChaStream(derive_key(KEY, "noise"), purpose="noise")
    theta = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in sorted(method.shapes().items())}
    mean_D = torch.zeros(theta["head.weight"].shape[1], dtype=torch.float64)
    if plan.mean_releases:
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        rows = torch.stack([features[[unit == name for unit in units]].mean(0) for name in names])
        noise = plan.noise_multiplier
        mean_D = noisy_mean(rows, radius=method.radius, noise_multiplier=noise, stream=stream)
    if params.optimizer == "adam":
        betas = (params.momentum or 0.9, 0.999)
        optimizer = torch.optim.AdamW(theta.values(), lr=params.lr, betas=betas, weight_decay=params.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            theta.values(), lr=params.lr, momentum=params.momentum, weight_decay=params.weight_decay
        )
    sampler = PoissonSampler(derive_key(KEY, "sampling"), sample_rate=plan.sample_rate, steps=plan.steps)
    iterates = []
    for taken in sampler.batches(names):
        # what acts on the features as theta does on the centred ones
        plain = {**theta, "head.bias": theta["head.bias"] - theta["head.weight"] @ mean_D}
        logits_BC = sum(linearized_by_jvp(model, x, plain)).requires_grad_()
        (r_BC,) = torch.autograd.grad(losses(params.loss, logits_BC, shard.labels_B).sum(), logits_BC)
        gradients = gradients_by_loop(model, x, r_BC, theta)
        for gradient, r_C in zip(gradients, r_BC, strict=True):
            gradient["head.weight"] = gradient["head.weight"] - torch.outer(r_C, mean_D)
        by_unit = unit_gradients_by_loop(gradients, units)
        bound = plan.max_grad_norm if plan.private else math.inf
        total = clipped_sum_by_loop([by_unit[names[unit]] for unit in taken], bound)
        for name, parameter in theta.items():
            noise = torch.zeros_like(parameter)
            if plan.private:
                noise = stream.normal(parameter.numel()).view_as(parameter) * plan.noise_multiplier * plan.max_grad_norm
            parameter.grad = (total.get(name, 0.0) + noise) / plan.expected_units
        optimizer.step()
        iterates.append({name: parameter.clone() for name, parameter in theta.items()})
    first = min(int(params.average_from * plan.steps), plan.steps - 1)
    mean = {name: torch.stack([iterate[name] for iterate in iterates[first:]]).mean(0) for name in theta}
    return {**mean, "head.bias": mean["head.bias"] - mean["head.weight"] @ mean_D}


@pytest.mark.parametrize(
    ("kind", "plan", "params"),
    [
        ("class row", {}, {}),
        ("class row", {"unit": "example", "expected_units": 8.0}, {"loss": "square", "average_from": 0.0}),
        ("class row", {"mean_releases": 1}, {"momentum": 0.5, "average_from": 1.0}),
        ("class row", {"noise_multiplier": 0.0}, {"weight_decay": 0.1}),
        ("block", {"mean_releases": 1, "sample_rate": 1.0}, {"lr": 0.01, "optimizer": "adam", "weight_decay": 0.1}),
        ("block", {"noise_multiplier": 0.0, "mean_releases": 1}, {}),
        ("head", {"mean_releases": 1}, {}),
        ("head", {"unit": "example", "sample_rate": 0.05}, {"lr": 0.01, "optimizer": "adam", "momentum": 0.8}),
    ],
)
def test_training_is_dp_sgd(make_method, make_shard, kind, plan, params):
    method, model = make_method(kind)
    shard = make_shard(method, IDS)
    plan, params = replace(PLAN, **plan), replace(PARAMS, **params)
    found = train(method, shard, plan=plan, params=params)
    expected = by_loop(method, model, shard, plan, params)
    assert found.keys() == expected.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    largest = float(flat(expected).abs().max())
    for name, tensor in expected.items():
        assert float((found[name].double() - tensor).abs().max()) <= 2e-5 * largest, name


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("mean_releases", [0, 1])
@pytest.mark.parametrize("kind", METHODS)
def test_the_same_key_gives_the_same_bits(make_method, make_shard, kind, mean_releases, optimizer):
    plan, params = replace(PLAN, mean_releases=mean_releases), replace(PARAMS, optimizer=optimizer)
    runs = []
    for _ in range(2):
        method, _ = make_method(kind)
        torch.rand(3)  # the global generator has no say
        runs.append(train(method, make_shard(method, IDS), plan=plan, params=params))
    assert same_bits(*runs)


@pytest.mark.parametrize("subject", ["a", "d", "h"])
@pytest.mark.parametrize("unit", ["example", "subject"])
@pytest.mark.parametrize("kind", METHODS)
def test_removing_a_subject_is_never_having_held_it(make_method, make_shard, kind, unit, subject):
    """Retraining on rows without a subject, whatever file they came from, is training that never saw it."""
    method, _ = make_method(kind)
    plan = replace(PLAN, unit=unit, mean_releases=1)
    everyone = train(method, make_shard(method, IDS), plan=plan)
    held, never = list(IDS), [name for name in reversed(IDS) if not name.startswith(subject)]
    left = [name for name in held if not name.startswith(subject)]
    retrained = train(method, make_shard(method, left), plan=plan, ids=left)
    other_method, _ = make_method(kind)
    assert same_bits(retrained, train(other_method, make_shard(other_method, never), plan=plan, ids=never))
    assert not same_bits(retrained, everyone)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", METHODS)
def test_a_subject_moves_one_release_by_at_most_the_clipping_norm(make_method, make_shard, kind, rows):
    """Neighbouring shards draw the same noise under one key, so the difference is the subject's clipped part."""
    method, _ = make_method(kind)
    plan = replace(PLAN, steps=1, sample_rate=1.0, max_grad_norm=0.1)
    ids = [name for name in IDS if not name.startswith("e")]
    added = [*ids, *(f"e-{number}" for number in range(rows))]
    without = train(method, make_shard(method, ids), plan=plan, ids=ids)
    with_them = train(method, make_shard(method, added), plan=plan, ids=added)
    moved = float((flat(with_them) - flat(without)).norm())
    assert moved == pytest.approx(PARAMS.lr * plan.max_grad_norm / plan.expected_units, rel=1e-3)


@pytest.mark.parametrize("mean_releases", [0, 1])
@pytest.mark.parametrize("kind", METHODS)
def test_an_empty_shard_looks_like_any_other(make_method, make_shard, kind, mean_releases):
    method, _ = make_method(kind)
    plan = replace(PLAN, mean_releases=mean_releases)
    nobody, somebody = make_shard(method, []), make_shard(method, ["z-0"])
    assert nobody.constants is None
    steps: dict[str, list] = {"nobody": [], "somebody": []}
    empty = train(method, nobody, plan=plan, ids=[], on_step=lambda *at: steps["nobody"].append(at))
    one = train(method, somebody, plan=plan, ids=["z-0"], on_step=lambda *at: steps["somebody"].append(at))
    assert {n: (t.shape, t.dtype) for n, t in empty.items()} == {n: (t.shape, t.dtype) for n, t in one.items()}
    assert {name: tuple(tensor.shape) for name, tensor in empty.items()} == method.shapes()
    assert steps["nobody"] == steps["somebody"] == [(step, PLAN.steps) for step in range(1, PLAN.steps + 1)]
    assert all(torch.isfinite(tensor).all() and tensor.any() for tensor in empty.values())


def test_a_subject_that_is_never_sampled_leaves_no_trace(make_method, make_shard):
    method, _ = make_method("class row")
    plan = replace(PLAN, sample_rate=1e-9)
    somebody = train(method, make_shard(method, ["z-0"]), plan=plan, ids=["z-0"])
    assert same_bits(somebody, train(method, make_shard(method, []), plan=plan, ids=[]))


def test_an_empty_shard_is_noise_of_the_planned_size(make_method, make_shard):
    method, _ = make_method("class row")
    plan, params = replace(PLAN, steps=16), replace(PARAMS, average_from=1.0)
    noise = flat(train(method, make_shard(method, []), plan=plan, params=params, ids=[]))
    expected = params.lr * plan.noise_multiplier * plan.max_grad_norm / plan.expected_units * math.sqrt(plan.steps)
    assert len(noise) > 5000
    assert float(noise.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * len(noise)))
    assert abs(float(noise.mean())) < 4 * expected / math.sqrt(len(noise))


@pytest.mark.parametrize("kind", METHODS)
def test_a_release_is_the_noiseless_one_plus_noise_of_the_planned_size(make_method, make_shard, kind):
    method, model = make_method(kind)
    shard = make_shard(method, IDS)
    plan = replace(PLAN, steps=1, sample_rate=1.0)
    found = flat(train(method, shard, plan=plan))
    logits_BC = model(shard.images_B).requires_grad_()
    (r_BC,) = torch.autograd.grad(losses("cross_entropy", logits_BC, shard.labels_B).sum(), logits_BC)
    loop = gradients_by_loop(model, shard.images_B, r_BC, method.shapes())
    total = clipped_sum_by_loop(unit_gradients_by_loop(loop, shard.subjects).values(), plan.max_grad_norm)
    noise = found + PARAMS.lr * flat(total) / plan.expected_units
    expected = PARAMS.lr * plan.noise_multiplier * plan.max_grad_norm / plan.expected_units
    tolerance = 4 / math.sqrt(2 * len(noise))
    assert float(noise.std()) == pytest.approx(expected, rel=tolerance)
    assert abs(torch.corrcoef(torch.stack([noise, flat(total)]))[0, 1]) < 4 / math.sqrt(len(noise))


@pytest.mark.parametrize(
    "other",
    [insecure_key(7, shard=1, attempt=0), insecure_key(7, shard=0, attempt=1), insecure_key(8, shard=0, attempt=0)],
)
def test_other_shards_attempts_and_seeds_have_independent_noise(make_method, make_shard, other):
    method, _ = make_method("class row")
    nobody = make_shard(method, [])
    pair = torch.stack([flat(train(method, nobody, key=key, ids=[])) for key in (KEY, other)])
    assert abs(torch.corrcoef(pair)[0, 1]) < 4 / math.sqrt(pair.shape[1])


@pytest.mark.parametrize(("average_from", "first"), [(0.0, 0), (0.5, 2), (0.99, 3), (1.0, 3)])
def test_the_component_is_the_mean_of_the_last_iterates(make_method, make_shard, average_from, first):
    method, _ = make_method("head")
    nobody = make_shard(method, [])
    iterates = [
        flat(train(method, nobody, plan=replace(PLAN, steps=steps), params=replace(PARAMS, average_from=1.0), ids=[]))
        for steps in range(1, PLAN.steps + 1)
    ]
    found = flat(train(method, nobody, params=replace(PARAMS, average_from=average_from), ids=[]))
    torch.testing.assert_close(found, torch.stack(iterates[first:]).mean(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", METHODS)
def test_half_precision_trains_nearly_the_same_and_as_reproducibly(make_method, make_shard, kind):
    method, _ = make_method(kind)
    shard = make_shard(method, IDS)
    plan = replace(PLAN, mean_releases=1)
    exact = train(method, shard, plan=plan)
    for name in method.wide & shard.constants.keys():
        shard.constants[name] = shard.constants[name].bfloat16()
    rough = train(method, shard, plan=plan, dtype=torch.bfloat16)
    assert same_bits(rough, train(method, shard, plan=plan, dtype=torch.bfloat16))
    assert {tensor.dtype for tensor in rough.values()} == {torch.float32}
    assert 0 < float((flat(rough) - flat(exact)).norm()) < 0.05 * float(flat(exact).norm())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("noise_multiplier", [0.7, 0.0])
def test_a_subject_that_is_not_finite_contributes_nothing(make_method, make_shard, noise_multiplier, bad):
    method, _ = make_method("class row")
    plan = replace(PLAN, noise_multiplier=noise_multiplier)
    left = [name for name in IDS if not name.startswith("d")]
    expected = train(method, make_shard(method, left), plan=plan, ids=left)
    shard = make_shard(method, IDS)
    for tensor in shard.constants.values():
        tensor[shard.subjects.index("d")] = bad
    found, wanted = flat(train(method, shard, plan=plan)), flat(expected)
    if not plan.private:  # the bad subject still counts in the normaliser, the shard's own number of subjects
        assert torch.isfinite(found).all()
    else:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_without_privacy_a_step_is_the_mean_of_the_shards_own_units(make_method, make_shard):
    method, _ = make_method("head")
    shard = make_shard(method, IDS)
    plans = [replace(PLAN, noise_multiplier=0.0, expected_units=number) for number in (1.0, 1000.0)]
    assert same_bits(*[train(method, shard, plan=plan) for plan in plans])


def test_training_does_not_change_what_it_reads(make_method, make_shard):
    method, _ = make_method("class row")
    shard = make_shard(method, IDS)
    before = {name: tensor.clone() for name, tensor in shard.constants.items()}
    train(method, shard)
    assert all(torch.equal(tensor, before[name]) for name, tensor in shard.constants.items())


def test_micro_batches_of_a_step_change_only_rounding(make_method, make_shard):
    method, _ = make_method("class row")
    shard = make_shard(method, IDS)
    small = flat(train(method, shard, max_rows=2, plan=replace(PLAN, mean_releases=1)))
    large = flat(train(method, shard, plan=replace(PLAN, mean_releases=1)))
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-6)


def test_learning_lowers_the_loss(make_method, make_shard):
    method, _ = make_method("class row")
    shard = make_shard(method, IDS)
    plan = replace(
        PLAN, unit="example", noise_multiplier=0.0, sample_rate=1.0, expected_units=float(len(IDS)), steps=30
    )
    learnt = train(method, shard, plan=plan, params=replace(PARAMS, lr=0.01))
    zero = {name: torch.zeros_like(tensor) for name, tensor in learnt.items()}
    before, after = (
        losses("cross_entropy", method.logits(shard.constants, at), shard.labels_B).mean() for at in (zero, learnt)
    )
    assert after < 0.5 * before


def test_the_time_is_told(make_method, make_shard):
    method, _ = make_method("head")
    shard = make_shard(method, IDS)
    options = {"plan": PLAN, "params": PARAMS, "root_key": KEY}
    trained = train_shard(
        method, shard.constants, labels_B=shard.labels_B, unit_of_row=units_of(shard, PLAN), **options
    )
    assert trained.train_s > 0
    assert np.isfinite(flat(trained.tensors).numpy()).all()


def test_features_are_averaged_over_a_units_rows_wherever_they_lie():
    rows = ["b", "a", "b", "c", "a"]
    x = torch.randn(5, 3)
    method = SimpleNamespace(features=lambda constants: constants["x"])
    found = _unit_features(method, {"x": x}, Units.of(rows), 2, torch.device("cpu"))
    expected = [x.double()[[row == unit for row in rows]].mean(0) for unit in "abc"]
    torch.testing.assert_close(found, torch.stack(expected))
