"""Summaries for people show the numbers that matter and nothing that is confidential."""

from __future__ import annotations

import io
from typing import Any

import pytest

from privshard.cli import render
from privshard.cli.output import summary_text


def text(renderable: Any) -> str:
    return summary_text(renderable, stream=io.StringIO())


def test_train_shows_components_metrics_and_statement(results):
    shown = text(render.train(results["train"]))
    for part in ("v0001", "digits", "000000000000", "accuracy 0.9375", "held-out", "total 12.5 s", "1e-05"):
        assert part in shown
    assert "[epsilon 8, delta 1e-05]" in shown
    assert "Method: name tangent, blocks 2, engine k-block (2 blocks are linearized)" in shown
    assert "700" not in shown


def test_a_training_without_differential_privacy_says_unbounded(results):
    components = [{**item, "epsilon": None} for item in results["train"]["components"]]
    assert "unbounded" in text(render.train({**results["train"], "components": components}))


def test_plan_shows_noise_limit_and_cost(results):
    shown = text(render.plan(results["plan"]))
    for part in ("nothing was done", "noise multiplier", "1.25", "12.5", "tangent", "num trained", "4810"):
        assert part in shown


@pytest.mark.parametrize(
    ("status", "heading"),
    [
        ("done", "The subject was forgotten"),
        ("planned", "nothing was done"),
        ("unknown_subject", "holds nothing about this subject"),
        ("already_forgotten", "was forgotten before"),
    ],
)
def test_forget_says_its_status(results, status, heading):
    assert heading in text(render.forget({**results["forget"], "status": status}))


def test_forget_shows_plan_versions_and_receipt(results):
    shown = text(render.forget(results["forget"]))
    for part in ("drop", "its shard held the subject", "v0001 -> v0002", "0.9375", "0.925", "exact_drop"):
        assert part in shown
    empty = {
        **dict.fromkeys(("model_before", "model_after", "metrics_before", "metrics_after", "receipt")),
        "request": "r",
        "status": "unknown_subject",
        "plan": [],
        "elapsed_s": 0.0,
    }
    assert "Receipt" not in text(render.forget(empty))


def test_budget_shows_every_shard_and_no_limit_as_none(results):
    shown = text(render.budget(results["budget"]))
    assert "unbounded" in shown
    assert "none" in shown
    assert "12.5" in shown
    assert "any number" in shown  # of retrains, where there is no limit


def test_budget_shows_groups_and_the_planner_s_answer(results):
    shown = text(render.budget(results["budget"]))
    for part in ("a subject with examples", "31.25", "more retrainings", "12.25", "admitted"):
        assert part in shown
    refused = {"shard": 0, "retrains": 3, "noise_multiplier": None, "epsilon": None, "admitted": False}
    answer = {"question": "noise", "shards": [refused]}
    shown = text(render.budget({**results["budget"], "groups": [], "what_if": answer}))
    assert "none is enough" in shown
    assert "refused" in shown
    assert "a subject with examples" not in shown


def test_tables_keep_long_names_whole(results):
    image = "folder/" + "x" * 300 + ".png"
    prediction = {**results["predict"]["predictions"][0], "image": image}
    shown = text(render.predict({**results["predict"], "predictions": [prediction]}))
    assert shown.count("x") >= 300


def test_markup_in_names_is_text(results):
    shown = text(
        render.predict({"model": "v0001", "predictions": [{"image": "[red]", "label": "[/b]", "probability": 1.0}]})
    )
    assert "[red]" in shown
    assert "[/b]" in shown


def test_influence_evaluate_verify_and_import(results):
    assert "0.375" in text(render.influence({**results["influence"], "html": "r.html", "note": "A note."}))
    assert "r.html" in text(render.influence({**results["influence"], "html": "r.html"}))
    evaluated = text(render.evaluate(results["evaluate"]))
    assert "expected calibration error" in evaluated
    assert "not covered by the guarantee" in evaluated
    assert "Verified" in text(render.verify(results["verify"]))
    shown = text(render.imported(results["import"]))
    assert "3 rows, 2 classes, no named subjects" in shown
    assert "no images: 1" in shown
