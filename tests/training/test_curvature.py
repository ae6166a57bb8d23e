"""The curvature that a shard keeps: against dense Hessians, and composed, against the optimum of all rows together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from privshard.composition.curvature import Held, by_curvature
from privshard.core.jobs import TrainingParams
from privshard.core.privacy import MechanismPlan
from privshard.training.curvature import strongest
from privshard.training.linear_map import LinearMap
from privshard.training.shard import train_shard

IDS = [f"{name}-{number}" for name in "abcd" for number in range(4)]
SHARDS = (IDS[:3], IDS[3:10], IDS[10:])  # 7 rows of 5 classes: a curvature of rank 35
PARAMS = TrainingParams(lr=1.0, optimizer="exact", loss="square", weight_decay=0.05, curvature_rank=35)
SCALED = replace(PARAMS, layer_scales={"head.*": 0.5})
PLAN = MechanismPlan(
    unit="example", sample_rate=1.0, steps=2000, max_grad_norm=1.0, noise_multiplier=0.0, expected_units=1.0,
    delta=1e-5, accountant="rdp", mean_releases=1,
)  # fmt: skip
PLAIN = replace(PLAN, mean_releases=0)


def train(method, make_shard, ids, *, params=PARAMS, plan=PLAIN):
    shard = make_shard(method, ids)
    found = train_shard(
        method,
        shard.constants,
        labels_B=shard.labels_B,
        unit_of_row=sorted(ids),
        plan=plan,
        params=params,
        root_key=bytes(32),
        max_rows=8,
    )
    return shard, found


def curved(method, shard, tensors, direction, *, loss):
    """The Hessian of the summed loss over a shard's rows times a direction: every row of the Jacobian is formed, in
    double precision."""
    jacobian = LinearMap(method, shard.constants, ids=[f"{row:03d}" for row in range(len(shard.labels_B))])
    num, classes = jacobian.base_nC.shape
    rows = [jacobian.transposed(one.view(num, classes)) for one in torch.eye(num * classes, dtype=torch.float64)]
    j_nCP = torch.stack(rows).view(num, classes, -1)
    moved_nC = j_nCP @ direction
    if loss == "square":
        return torch.einsum("ncp,nc->p", j_nCP, 2 / classes * moved_nC)
    p_nC = torch.softmax(method.logits(shard.constants, tensors).double(), dim=1)
    q_nCC = torch.diag_embed(p_nC) - p_nC[:, :, None] * p_nC[:, None]
    return torch.einsum("ncp,ncd,nd->p", j_nCP, q_nCC, moved_nC)


def factor(found):
    names = sorted(found.tensors)
    return torch.cat([found.curvature[f"factor/{name}"].flatten(1) for name in names], dim=1).double()


def composed(method, trained):
    arrays = [{name: tensor.numpy() for name, tensor in found.tensors.items()} for found in trained]
    around = [{name: tensor.numpy() for name, tensor in found.curvature.items()} for found in trained]
    ids = [f"c{number}" for number in range(len(trained))]
    return by_curvature(
        {name: Held(item) for name, item in zip(ids, arrays, strict=True)},
        {name: Held(item) for name, item in zip(ids, around, strict=True)},
        dict.fromkeys(ids, 1 / len(ids)),
        shapes=method.shapes(),
    )


def distance(found, wanted):
    """|found - wanted| / |wanted| over all tensors."""
    apart = sum(float((torch.as_tensor(found[name]) - wanted[name]).double().square().sum()) for name in wanted)
    return (apart / sum(float(tensor.double().square().sum()) for tensor in wanted.values())) ** 0.5


def test_the_strongest_directions_are_the_largest_eigenvalues():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64)).Q
    values = torch.tensor([2.0**-place for place in range(12)] + [0.0] * 18, dtype=torch.float64)
    matrix = vectors @ torch.diag(values) @ vectors.T

    def best(rank):
        return vectors[:, :rank] @ torch.diag(values[:rank]) @ vectors[:, :rank].T

    for rank in (4, 12, 30):
        found = strongest(lambda rows: rows @ matrix, size=30, rank=rank)
        assert found.shape == (rank, 30)
        torch.testing.assert_close(found.T @ found, best(rank), atol=1e-4 if rank == 4 else 1e-5, rtol=0)
        assert torch.equal(found, strongest(lambda rows: rows @ matrix, size=30, rank=rank))
    assert not strongest(lambda rows: 0 * rows, size=30, rank=4).any()


@pytest.mark.parametrize(("kind", "loss"), [("head", "square"), ("head", "cross_entropy"), ("class row", "square")])
def test_a_full_factor_is_the_hessian(make_method, make_shard, kind, loss):
    method, _ = make_method(kind)
    params = replace(SCALED, loss=loss, curvature_rank=35)
    shard, found = train(method, make_shard, SHARDS[1], params=params, plan=PLAN)
    mine = factor(found)
    for seed in range(3):
        direction = torch.randn(mine.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        wanted = curved(method, shard, found.tensors, direction, loss=loss)
        assert float((mine.T @ (mine @ direction) - wanted).norm() / wanted.norm()) < 1e-4
    mean = method.features(shard.constants).double().mean(0)
    torch.testing.assert_close(found.curvature["center"], mean)
    assert float(found.curvature["ridge/head.bias"]) == pytest.approx(7 * 0.05 / 0.25)


def test_composed_shards_are_the_optimum_of_all_their_rows(make_method, make_shard):
    method, _ = make_method("class row")
    params = replace(PARAMS, curvature_rank=35)
    trained = [train(method, make_shard, ids, params=params)[1] for ids in (*SHARDS, [])]
    _, together = train(method, make_shard, IDS)
    average = {name: sum(found.tensors[name] for found in trained) / 4 for name in together.tensors}
    assert distance(composed(method, trained), together.tensors) < 1e-3
    assert distance(average, together.tensors) > 0.1


def test_with_means_and_scales_of_their_own_it_is_the_optimum_of_the_sum_of_their_objectives(make_method, make_shard):
    method, _ = make_method("head")
    parts = [train(method, make_shard, ids, params=SCALED, plan=PLAN) for ids in SHARDS]
    found = composed(method, [trained for _, trained in parts])

    def slope(tensors):
        leaves = {name: torch.as_tensor(tensor).double().requires_grad_() for name, tensor in tensors.items()}
        total = torch.zeros((), dtype=torch.float64)
        for shard, _ in parts:
            feature = shard.constants["feature"].double()
            logits = shard.constants["logits"].double() + feature @ leaves["head.weight"].T + leaves["head.bias"]
            onehot = torch.nn.functional.one_hot(shard.labels_B, logits.shape[1])
            tied = leaves["head.bias"] + leaves["head.weight"] @ feature.mean(0)
            ridge = (leaves["head.weight"].square().sum() + tied.square().sum()) / 0.25
            total = total + (logits - 15 * onehot).square().mean(1).sum() + len(feature) * 0.05 / 2 * ridge
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(total, list(leaves.values()))]).norm()

    average = {name: sum(trained.tensors[name] for _, trained in parts) / 3 for name in method.shapes()}
    assert float(slope(found) / slope(average)) < 1e-3


def test_a_shard_without_rows_keeps_the_shapes_and_weighs_nothing(make_method, make_shard):
    method, _ = make_method("head")
    params = replace(SCALED, curvature_rank=7)
    _, full = train(method, make_shard, SHARDS[1], params=params, plan=PLAN)
    _, empty = train(method, make_shard, [], params=params, plan=PLAN)
    assert {n: t.shape for n, t in full.curvature.items()} == {n: t.shape for n, t in empty.curvature.items()}
    assert not any(tensor.any() for tensor in empty.curvature.values())
    assert distance(composed(method, [full, empty]), full.tensors) < 1e-5
    assert not any(array.any() for array in composed(method, [empty, empty]).values())


def test_without_being_asked_for_there_is_none(make_method, make_shard):
    method, _ = make_method("head")
    assert train(method, make_shard, SHARDS[0], params=replace(PARAMS, curvature_rank=0))[1].curvature == {}


def test_more_directions_come_closer(make_method, make_shard):
    method, _ = make_method("class row")
    _, together = train(method, make_shard, IDS)
    away = []
    for rank in (2, 12, 35):
        params = replace(PARAMS, curvature_rank=rank)
        trained = [train(method, make_shard, ids, params=params)[1] for ids in SHARDS]
        away.append(distance(composed(method, trained), together.tensors))
    assert np.all(np.diff(away) < 0), away


def test_what_is_not_kept_is_the_next_eigenvalue_in_every_direction(make_method, make_shard):
    method, _ = make_method("head")
    shard, found = train(method, make_shard, SHARDS[1], params=replace(PARAMS, curvature_rank=8))
    ones = torch.ones(len(shard.labels_B), 1, dtype=torch.float64)
    feature = torch.cat([shard.constants["feature"].double(), ones], dim=1)
    values = torch.linalg.eigvalsh(2 / 5 * feature.T @ feature).flip(0).repeat_interleave(5)  # once for each class
    tail = float(found.curvature["ridge/head.bias"]) - 7 * 0.05
    assert tail == pytest.approx(float(values[8]), rel=0.05)  # about the best of this rank
    squares = factor(found).square().sum(1)
    torch.testing.assert_close(squares, values[:8] - values[8], rtol=0, atol=0.05 * float(values[8]))
