"""The optimum of a shard: against scikit-learn, normal equations, another optimizer; bits; refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from privshard.core.errors import InputError
from privshard.training.linear_map import LinearMap
from privshard.training.solver import solve

IDS = [f"{name}-{number}" for name in "abcd" for number in range(4)]


@pytest.fixture
def make_problem(make_method, make_shard):
    """kind -> (method, constants in double precision, labels) over IDS."""

    def make(kind: str, *, dtype: torch.dtype = torch.float64):
        shard = make_shard(make_method(kind)[0], IDS)
        method, model = make_method(kind, dtype=dtype)
        return method, {name: tensor.to(dtype) for name, tensor in shard.constants.items()}, shard.labels_B, model

    return make


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("ridge", [0.1, 0.003])
def test_the_head_is_scikit_learns_logistic_regression(make_problem, ridge):
    method, constants, labels, model = make_problem("head")
    for parameter in model.head.parameters():
        parameter.data.zero_()
    constants["logits"].zero_()
    found = solve(method, constants, labels_n=labels, ids=sorted(IDS), loss="cross_entropy", ridge=ridge)
    rows = np.hstack([constants["feature"].numpy(), np.ones((len(IDS), 1))])
    oracle = LogisticRegression(C=1 / ridge / len(IDS), fit_intercept=False, tol=1e-10, max_iter=10000)
    oracle.fit(rows, labels.numpy())
    expected = np.zeros((5, rows.shape[1]))
    expected[oracle.classes_] = oracle.coef_  # a class without rows is left out by scikit-learn
    if len(oracle.classes_) == 5:
        weight = torch.cat([found.tensors["head.weight"], found.tensors["head.bias"][:, None]], dim=1).double()
        np.testing.assert_allclose(weight.numpy(), expected, atol=2e-3 * np.abs(expected).max())
    else:
        pytest.fail("the labels of this shard should cover all classes")


@pytest.mark.parametrize("route", ["primal", "dual"])
def test_the_square_loss_solves_the_normal_equations(make_problem, route):
    method, constants, labels, _ = make_problem("head")
    found = solve(
        method, constants, labels_n=labels, ids=sorted(IDS), loss="square", ridge=0.02, tolerance=1e-9, route=route
    )
    x = torch.cat([constants["feature"], torch.ones(len(IDS), 1).double()], dim=1)
    target = 15 * F.one_hot(labels, 5).double() - constants["logits"]
    normal = x.mT @ x * (2 / 5 / len(IDS)) + 0.02 * torch.eye(x.shape[1])
    expected = torch.linalg.solve(normal, x.mT @ target * (2 / 5 / len(IDS))).mT
    weight = torch.cat([found.tensors["head.weight"], found.tensors["head.bias"][:, None]], dim=1)
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "loss"), [("class row", "cross_entropy"), ("class row", "square"), ("blocks", "cross_entropy")]
)
def test_both_routes_find_what_another_optimizer_finds(make_problem, kind, loss):
    method, constants, labels, _ = make_problem(kind)
    ridge = 0.05
    both = [
        solve(method, constants, labels_n=labels, ids=sorted(IDS), loss=loss, ridge=ridge, tolerance=1e-8, route=route)
        for route in ("primal", "dual")
    ]
    assert [each.route for each in both] == ["primal", "dual"]
    assert all(each.gradient_norm <= 1e-8 for each in both)
    expected = _by_lbfgs(method, constants, labels, loss, ridge)
    for each in both:
        torch.testing.assert_close(flat(each.tensors), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def _by_lbfgs(method, constants, labels, loss, ridge):
    """Minimize over a in D = J^T a, with J formed row by row."""
    jacobian = LinearMap(method, constants, ids=sorted(IDS))
    num, classes = jacobian.base_nC.shape
    rows = []
    for index in range(num * classes):
        unit = torch.zeros(num * classes).double()
        unit[index] = 1
        rows.append(jacobian.transposed(unit.view(num, classes)))
    j_NP = torch.stack(rows)
    left, values, right = torch.linalg.svd(j_NP, full_matrices=False)
    a = torch.zeros(len(values), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([a], max_iter=5000, tolerance_grad=1e-12, tolerance_change=0, history_size=100,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        logits = jacobian.base_nC + ((left * values) @ a).view(num, classes)
        onehot = F.one_hot(labels, classes).double()
        fit = F.cross_entropy(logits, labels) if loss == "cross_entropy" else (logits - 15 * onehot).square().mean()
        value = fit + ridge / 2 * a.square().sum()
        value.backward()
        return value

    optimizer.step(objective)
    return right.mT @ a.detach()


@pytest.mark.parametrize(("kind", "route"), [("class row", "primal"), ("class row", "dual"), ("blocks", "dual")])
def test_the_order_of_rows_leaves_no_trace(make_problem, kind, route):
    method, constants, labels, _ = make_problem(kind, dtype=torch.float32)
    ids = sorted(IDS)
    order = np.random.default_rng(0).permutation(len(ids))
    options = {"loss": "cross_entropy", "ridge": 0.5, "max_rows": 7, "tolerance": 1e-2, "route": route}
    first = solve(method, constants, labels_n=labels, ids=ids, **options)
    shuffled = {name: tensor[order] for name, tensor in constants.items()}
    second = solve(method, shuffled, labels_n=labels[order], ids=[ids[i] for i in order], **options)
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert first.gradient_norm == second.gradient_norm
    assert any(tensor.any() for tensor in first.tensors.values())


def test_a_small_shard_takes_the_kernel_and_a_large_one_products(make_problem, monkeypatch):
    method, constants, labels, _ = make_problem("class row", dtype=torch.float32)
    options = {"labels_n": labels, "ids": sorted(IDS), "loss": "cross_entropy", "ridge": 0.1}
    assert solve(method, constants, **options).route == "dual"
    monkeypatch.setattr("privshard.training.solver._MAX_KERNEL_ROWS", 10)
    assert solve(method, constants, **options).route == "primal"


def test_refusals_name_the_key(make_problem):
    method, constants, labels, _ = make_problem("class row", dtype=torch.float32)
    options = {"labels_n": labels, "ids": sorted(IDS), "loss": "cross_entropy"}
    with pytest.raises(InputError, match=r"training\.weight_decay: expected a number above 0"):
        solve(method, constants, ridge=0.0, **options)
    with pytest.raises(InputError, match=r"at most 3 products"):
        solve(method, constants, ridge=1e-6, max_products=3, route="primal", **options)
    with pytest.raises(InputError, match=r"at most 8 products.*Raise training\.weight_decay"):
        solve(method, constants, ridge=1e-6, max_products=8, route="primal", **options)
