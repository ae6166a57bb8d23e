"""Metrics against scikit-learn and a loop; zero rows, extreme logits, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from oracles import calibration_error_by_loop
from sklearn.metrics import accuracy_score, log_loss, recall_score

from privshard.composition.metrics import metrics
from privshard.core.errors import InputError

CLASSES = ("ant", "bee", "cat", "dog")


def _rows(seed: int = 0, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels_B = rng.integers(0, 4, count)
    return 2 * rng.standard_normal((count, 4)) + 2 * np.eye(4)[labels_B], labels_B


def test_agrees_with_scikit_learn():
    logits_BC, labels_B = _rows()
    found = metrics(logits_BC, labels_B, CLASSES)
    p_BC = np.exp(logits_BC) / np.exp(logits_BC).sum(axis=1, keepdims=True)
    assert found["accuracy"] == accuracy_score(labels_B, logits_BC.argmax(1))
    assert found["negative_log_likelihood"] == pytest.approx(log_loss(labels_B, p_BC), rel=1e-12)
    assert found["mean_confidence"] == pytest.approx(p_BC.max(1).mean(), rel=1e-12)
    recall = recall_score(labels_B, logits_BC.argmax(1), average=None)
    assert [row["accuracy"] for row in found["per_class"]] == pytest.approx(list(recall), rel=1e-12)
    assert [row["num_rows"] for row in found["per_class"]] == np.bincount(labels_B).tolist()
    assert [row["class"] for row in found["per_class"]] == list(CLASSES)
    assert found["num_rows"] == 200


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_agrees_with_a_loop(seed):
    logits_BC, labels_B = _rows(seed)
    expected = calibration_error_by_loop(logits_BC, labels_B, 15)
    assert metrics(logits_BC, labels_B, CLASSES)["expected_calibration_error"] == pytest.approx(expected, abs=1e-12)


def test_confidence_on_an_edge_belongs_to_the_bin_below():
    third = np.log([[0.6, 0.4], [0.601, 0.399]])
    found = metrics(third, np.array([0, 1]), ("a", "b"))["expected_calibration_error"]
    assert found == pytest.approx((0.4 + 0.601) / 2, abs=1e-12)


def test_perfect_and_certain_predictions_reach_the_ends():
    logits_BC = 1e4 * np.eye(4)
    found = metrics(logits_BC, np.arange(4), CLASSES)
    assert (found["accuracy"], found["expected_calibration_error"], found["negative_log_likelihood"]) == (1.0, 0.0, 0.0)
    wrong = metrics(logits_BC, np.array([1, 2, 3, 0]), CLASSES)
    assert (wrong["accuracy"], wrong["expected_calibration_error"], wrong["negative_log_likelihood"]) == (0.0, 1.0, 1e4)


def test_first_of_tied_logits_is_the_prediction():
    assert metrics(np.zeros((2, 4)), np.array([0, 1]), CLASSES)["accuracy"] == 0.5


def test_zero_rows_and_empty_classes_are_null_not_nan():
    found = metrics(np.zeros((0, 4)), np.zeros(0, dtype=int), CLASSES)
    assert found["num_rows"] == 0
    numbers = ("accuracy", "expected_calibration_error", "negative_log_likelihood", "mean_confidence")
    assert [found[name] for name in numbers] == [None] * 4
    assert found["per_class"][0] == {"class": "ant", "accuracy": None, "num_rows": 0}
    assert metrics(np.zeros((1, 4)), np.array([2]), CLASSES)["per_class"][0]["accuracy"] is None
    json.dumps(found, allow_nan=False)


def test_json_holds_plain_values_for_fp32_logits():
    logits_BC, labels_B = _rows()
    json.dumps(metrics(logits_BC.astype(np.float32), labels_B.astype(np.int32), CLASSES), allow_nan=False)


def test_bad_rows_are_refused():
    logits_BC, labels_B = _rows(count=3)
    with pytest.raises(InputError, match=r"Expected logits of shape .* = \(3, 3\), got \(3, 4\)"):
        metrics(logits_BC, labels_B, CLASSES[:3])
    with pytest.raises(InputError, match="Expected integer labels from 0 to 3"):
        metrics(logits_BC, np.array([0, 1, 4]), CLASSES)
    with pytest.raises(InputError, match="Expected integer labels from 0 to 3"):
        metrics(logits_BC, np.array([0, 1, -1]), CLASSES)
    with pytest.raises(InputError, match="Expected integer labels"):
        metrics(logits_BC, np.array([0.0, 1.0, 2.0]), CLASSES)
    logits_BC[1, 2] = np.nan
    with pytest.raises(InputError, match="1 of 3 rows hold NaN or infinity"):
        metrics(logits_BC, labels_B, CLASSES)
    with pytest.raises(InputError, match="at least one class"):
        metrics(np.zeros((0, 0)), np.zeros(0, dtype=int), ())
