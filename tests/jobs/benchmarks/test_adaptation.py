"""The comparison of methods, on a few digits: it is complete, resumes, stops in time, and says what it would cost."""

from __future__ import annotations

import json

import pytest
from tiny_digits import write_people

from jobs.benchmarks import adaptation


@pytest.fixture
def given(tmp_path) -> list[str]:
    """Arguments for two small sets of the same data."""
    (tmp_path / "data").mkdir()
    for name in ("one", "two"):
        write_people(tmp_path / "data" / f"{name}.parquet", num_people=24, rows_each=1)
    return [
        *("--data", str(tmp_path), "--out", str(tmp_path / "out"), "--sets", "one", "two", "--model", "embedded"),
        *("--methods", "head", "bitfit", "--private-methods", "head", "--rates", "0.001", "0.01", "--seeds", "2"),
        *("--steps", "2", "--batch", "8", "--private-steps", "2", "--limit", "22", "--device", "cpu"),
        *("--dtype", "float32", "--threads", "1"),
    ]


def test_it_is_complete_and_continues_where_it_stopped(given, tmp_path):
    planned = adaptation.main([*given, "--plan"])
    assert planned["cost"]["one"]["trainings"] == 3 * (2 * 1 + 2)
    rows = 22 * 2 + 22 * 2 * 4 / 5
    assert planned["cost"]["one"]["gradients"] == round(2 * (2 * 8 / 22 + 0.25) * rows)
    assert not (tmp_path / "out" / "results.json").exists()
    stopped = adaptation.main([*given, "--budget-s", "0"])
    assert not stopped["complete"]
    assert "run it again to continue" in (tmp_path / "out" / "results.md").read_text()
    report = adaptation.main(given)
    assert report["complete"]
    cells = [(tmp_path / "out" / f"{name}.jsonl").read_bytes() for name in ("one", "two")]
    assert adaptation.main(given)["sets"] == report["sets"]
    assert [(tmp_path / "out" / f"{name}.jsonl").read_bytes() for name in ("one", "two")] == cells
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    by_name = {row["name"]: row for row in kept["sets"]["one"]["rows"]}
    assert by_name.keys() == {"head", "bitfit", "head, epsilon 8"}
    assert (by_name["head, epsilon 8"]["shards"], by_name["head, epsilon 8"]["epsilon"]) == (5, 8.0)
    assert (by_name["bitfit"]["shards"], by_name["bitfit"]["epsilon"]) == (1, None)
    assert {row["name"] for row in kept["mean"]} == by_name.keys()


def test_means_are_over_sets_before_they_are_over_seeds():
    def row(name, accuracies, parameters):
        mean = sum(accuracies) / len(accuracies)
        return {"name": name, "accuracy": mean, "accuracies": accuracies, "parameters": parameters}

    one = {"rows": [row("a", [0.2, 0.4], 5), row("b", [0.1, 0.1], 1)]}
    two = {"rows": [row("a", [0.6, 0.4], 7), {**row("b", [0.3], 1), "accuracy": None}]}
    (found,) = adaptation.mean_over_sets({"one": one, "two": two})
    assert (found["name"], found["parameters"], found["accuracy"]) == ("a", 7, pytest.approx(0.4))
    assert found["interval"] == pytest.approx([0.4, 0.4])
