"""Leave-one-out against the formula and against metrics of the model after the drop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from privshard.composition.logits import composed_logits
from privshard.composition.metrics import metrics
from privshard.core.model import Composition
from privshard.influence.leave_one_out import drop_effects


def test_logits_without_follow_the_mean_formula(make_evidence):
    evidence = make_evidence(5)
    for index, name in enumerate(evidence.ids):
        expected = evidence.base_logits_BC + (5 * evidence.z_SBC.mean(0) - evidence.z_SBC[index]) / 4
        np.testing.assert_allclose(evidence.logits_without(name), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", [None, {"c00": 0.5, "c01": 0.2, "c02": 0.3}])
def test_effects_are_those_of_the_model_after_the_drop(make_evidence, weights):
    evidence = make_evidence(3, weights=weights)
    rest = Composition("b", evidence.weights).without({"c01"})
    after_BC = composed_logits(evidence.base_logits_BC, evidence.component_logits, rest.weights)
    before = metrics(evidence.full_logits_BC, evidence.labels_B, evidence.classes)
    after = metrics(after_BC, evidence.labels_B, evidence.classes)
    found = drop_effects(evidence, "c01")
    assert found["leave_one_out"]["accuracy"] == after["accuracy"]
    assert found["leave_one_out"]["accuracy_change"] == pytest.approx(after["accuracy"] - before["accuracy"], abs=1e-15)
    shift = np.mean([np.sqrt(np.sum(row**2)) for row in after_BC - evidence.full_logits_BC])
    assert found["leave_one_out"]["mean_logit_shift"] == pytest.approx(shift, rel=1e-12)
    for row, was, now in zip(found["per_class"], before["per_class"], after["per_class"], strict=True):
        assert (row["class"], row["num_rows"]) == (was["class"], was["num_rows"])
        assert (row["accuracy_with"], row["accuracy_without"]) == (was["accuracy"], now["accuracy"])


def test_without_the_only_component_the_base_is_left(make_evidence):
    evidence = make_evidence(1)
    np.testing.assert_array_equal(evidence.logits_without("c00"), evidence.base_logits_BC)
    base = metrics(evidence.base_logits_BC, evidence.labels_B, evidence.classes)
    assert drop_effects(evidence, "c00")["leave_one_out"]["accuracy"] == base["accuracy"]


def test_a_component_equal_to_the_mean_of_the_others_changes_nothing(make_evidence):
    evidence = make_evidence(2)
    same = {name: evidence.component_logits["c00"] for name in evidence.ids}
    found = drop_effects(replace(evidence, component_logits=same), "c01")
    assert found["leave_one_out"]["accuracy_change"] == 0.0
    assert found["leave_one_out"]["mean_logit_shift"] < 1e-15


def test_zero_rows_are_null(make_evidence):
    found = drop_effects(make_evidence(2, rows=0), "c00")
    assert set(found["leave_one_out"].values()) == {None}
    assert found["per_class"][0] == {
        "class": "class 0",
        "num_rows": 0,
        "accuracy_with": None,
        "accuracy_without": None,
    }
