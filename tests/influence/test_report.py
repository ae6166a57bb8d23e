"""The influence report: the contract's JSON, its sums, and its edges."""

from __future__ import annotations

import json

import numpy as np
import pytest
from oracles import shapley_by_orders

from privshard.composition.metrics import metrics
from privshard.core.errors import InputError
from privshard.influence import report as module
from privshard.influence.geometry import Geometry
from privshard.influence.report import influence_report


def _report(evidence, *, geometry=None, shards=None):
    count = len(evidence.ids)
    x_SN = np.random.default_rng(5).standard_normal((count, 9))
    return influence_report(
        evidence,
        geometry or Geometry(evidence.ids, x_SN @ x_SN.T, np.arange(count) + 1.0),
        shards={name: count - index for index, name in enumerate(evidence.ids)} if shards is None else shards,
        rng=np.random.default_rng(0),
    )


def test_report_has_the_keys_of_the_contract_and_is_json(make_evidence):
    found = _report(make_evidence(3))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    component = found["components"][0]
    assert {"id", "shard", "weight_distance", "leave_one_out", "shapley_accuracy", "shapley_logit", "per_class"} <= set(
        component
    )
    assert {"accuracy", "mean_logit_shift"} <= set(component["leave_one_out"])
    assert {"class", "accuracy_with", "accuracy_without"} <= set(component["per_class"][0])
    assert set(found["conflict"]) == {"ids", "cosine"}
    assert "40 held-out rows" in found["note"]
    assert "not covered by the privacy guarantee" in found["note"]


def test_components_are_sorted_by_shard_with_their_own_numbers(make_evidence):
    found = _report(make_evidence(3))
    assert [(item["shard"], item["id"]) for item in found["components"]] == [(1, "c02"), (2, "c01"), (3, "c00")]
    assert [item["weight_distance"] for item in found["components"]] == [3.0, 2.0, 1.0]
    assert found["conflict"]["ids"] == ["c02", "c01", "c00"]
    x_SN = np.random.default_rng(5).standard_normal((3, 9))
    unit_SN = (x_SN / np.linalg.norm(x_SN, axis=1, keepdims=True))[::-1]
    np.testing.assert_allclose(found["conflict"]["cosine"], unit_SN @ unit_SN.T, rtol=1e-12)


@pytest.mark.parametrize("weights", [None, {"c00": 0.6, "c01": 0.3, "c02": 0.1}])
def test_shapley_values_share_out_what_all_components_gain(make_evidence, weights):
    evidence = make_evidence(3, weights=weights)
    found = _report(evidence)
    gained = found["composition"]["accuracy"] - found["composition"]["base_accuracy"]
    assert sum(item["shapley_accuracy"] for item in found["components"]) == pytest.approx(gained, abs=1e-12)
    rows = np.arange(len(evidence.labels_B))
    moved = (evidence.full_logits_BC - evidence.base_logits_BC)[rows, evidence.labels_B].mean()
    assert sum(item["shapley_logit"] for item in found["components"]) == pytest.approx(moved, abs=1e-12)
    assert found["shapley"]["logit"]["method"] == ("closed_form" if weights is None else "exact")


def test_shapley_logit_agrees_with_all_orders(make_evidence):
    evidence = make_evidence(4)
    z_S = evidence.z_SBC[:, np.arange(40), evidence.labels_B].mean(axis=1)
    expected = shapley_by_orders(lambda members: float(z_S[list(members)].mean()) if members else 0.0, 4)
    found = {item["id"]: item["shapley_logit"] for item in _report(evidence)["components"]}
    np.testing.assert_allclose([found[name] for name in evidence.ids], expected, rtol=1e-12)


def test_many_components_are_sampled_with_an_interval(make_evidence, monkeypatch):
    evidence = make_evidence(5)
    exact = {item["id"]: item for item in _report(evidence)["components"]}
    assert all(item["shapley_accuracy_interval"] == [item["shapley_accuracy"]] * 2 for item in exact.values())
    monkeypatch.setattr(module, "MAX_LOGITS", 100)
    found = _report(evidence)
    assert found["shapley"]["accuracy"] == {"method": "antithetic_permutations", "num_coalitions": 2 * 32 * 6}
    for item in found["components"]:
        low, high = item["shapley_accuracy_interval"]
        assert low < item["shapley_accuracy"] < high
        assert abs(exact[item["id"]]["shapley_accuracy"] - item["shapley_accuracy"]) < high - low


def test_a_single_component_has_all_the_credit(make_evidence):
    evidence = make_evidence(1)
    found = _report(evidence)
    base = metrics(evidence.base_logits_BC, evidence.labels_B, evidence.classes)["accuracy"]
    [item] = found["components"]
    assert item["leave_one_out"]["accuracy"] == base
    assert item["shapley_accuracy"] == pytest.approx(found["composition"]["accuracy"] - base, abs=1e-15)


def test_zero_rows_give_null_and_no_components_give_none(make_evidence):
    empty = _report(make_evidence(2, rows=0))
    json.dumps(empty, allow_nan=False)
    assert empty["composition"] == {"accuracy": None, "base_accuracy": None, "num_rows": 0}
    assert {empty["components"][0][key] for key in ("shapley_accuracy", "shapley_logit")} == {None}
    nothing = _report(make_evidence(0))
    assert (nothing["components"], nothing["conflict"]) == ([], {"ids": [], "cosine": []})
    assert nothing["composition"]["accuracy"] == nothing["composition"]["base_accuracy"]


def test_different_components_are_refused(make_evidence):
    evidence = make_evidence(2)
    with pytest.raises(InputError, match=r"weights name \['c00', 'c01'\], files \['x'\]"):
        _report(evidence, geometry=Geometry(("x",), np.eye(1), np.ones(1)))
    with pytest.raises(InputError, match=r"shards are missing for \['c01'\]"):
        _report(evidence, shards={"c00": 0})
