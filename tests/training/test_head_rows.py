"""The eliminated head: against the Jacobian, and against least squares with everything written out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from privshard.training import solver
from privshard.training.head_rows import head_rows
from privshard.training.linear_map import LinearMap
from privshard.training.scaled import scaled

IDS = ["b-1", "a-2", "c-1", "a-1", "d-7", "c-3", "e-1"]
RIDGE = 0.3


@pytest.fixture
def make_map(make_method, make_shard):
    """kind -> (method with scales and a centre, its constants and Jacobian over IDS in double precision, labels)"""

    def make(kind: str):
        shard = make_shard(make_method(kind)[0], IDS)
        method, _ = make_method(kind, dtype=torch.float64)
        method = scaled(method, {"head.weight": 0.3, "head.bias": 2.0})
        width = method.shapes()["head.weight"][1]
        method = method.centered(torch.linspace(-1, 1, width).double())
        constants = {name: tensor.double() for name, tensor in shard.constants.items()}
        return method, constants, LinearMap(method, constants, ids=sorted(IDS), max_rows=3), shard.labels_B

    return make


@pytest.mark.parametrize("kind", ["class row", "head", "blocks", "whole"])
def test_the_head_moves_logits_by_the_same_rows_for_every_class(make_map, kind):
    method, _, jacobian, _ = make_map(kind)
    head = head_rows(method, jacobian, ridge=RIDGE)
    assert head is not None
    h_FC = torch.randn(head.rows_nF.shape[1], 5, generator=torch.Generator().manual_seed(0)).double()
    moved = jacobian.times(jacobian.flat(jacobian.zero | head.tensors(h_FC)))
    torch.testing.assert_close(head.rows_nF @ h_FC, moved, rtol=1e-9, atol=1e-9 * float(moved.abs().max()))


def test_the_best_head_is_that_of_least_squares(make_map):
    method, _, jacobian, _ = make_map("class row")
    head = head_rows(method, jacobian, ridge=RIDGE)
    y_nC = torch.randn(len(IDS), 5, generator=torch.Generator().manual_seed(1)).double()
    width = head.rows_nF.shape[1]
    rows = torch.cat([head.rows_nF, RIDGE**0.5 * torch.eye(width).double()])
    expected = torch.linalg.lstsq(rows, -torch.cat([y_nC, torch.zeros(width, 5).double()])).solution
    torch.testing.assert_close(head.best(y_nC), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(head.rest(y_nC), y_nC + head.rows_nF @ expected, rtol=1e-8, atol=1e-10)


def test_a_method_without_such_a_head_has_no_rows(make_map):
    method, _, jacobian, _ = make_map("class row")
    assert head_rows(SimpleNamespace(gradients=lambda *given: object()), jacobian, ridge=RIDGE) is None
    mixed = method.gradients(next(jacobian.batches()), jacobian.zero, torch.ones(3, 5).double())
    assert head_rows(SimpleNamespace(gradients=lambda *given: mixed), jacobian, ridge=RIDGE) is None


def test_the_optimum_is_the_same_without_elimination_and_takes_more_products(make_map, monkeypatch):
    method, constants, _, labels = make_map("class row")
    options = {"labels_n": labels, "ids": sorted(IDS), "loss": "square", "ridge": 0.01}
    options |= {"tolerance": 1e-9, "route": "primal"}
    found = solver.solve(method, constants, **options)
    monkeypatch.setattr(solver, "head_rows", lambda *given, **named: None)
    plain = solver.solve(method, constants, **options)
    assert found.num_products < plain.num_products
    assert found.tensors.keys() == plain.tensors.keys()
    largest = max(float(tensor.abs().max()) for tensor in plain.tensors.values())
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=1e-6 * largest)


def test_a_heads_optimum_takes_no_iteration(make_map):
    method, constants, _, labels = make_map("head")
    options = {"labels_n": labels, "ids": sorted(IDS), "loss": "square", "ridge": 1e-4, "tolerance": 1e-8}
    assert solver.solve(method, constants, route="primal", **options).num_products <= 5
