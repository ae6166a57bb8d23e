"""The comparison of methods, on a few digits: it is complete, resumes, stops in time, and says what it would cost."""

from __future__ import annotations

import json
import statistics

import pytest
from tiny_digits import write_people

from jobs.benchmarks import adaptation
from jobs.benchmarks._adaptation_report import differences, mean_over_sets


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
        *("--dtype", "float32", "--threads", "1", "--against", "bitfit"),
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
    (compared,) = kept["differences"]  # the private head has no counterpart
    assert (compared["name"], compared["minus"]) == ("bitfit", "head")
    assert f"| bitfit | head | {compared['difference']:+.4f} ± " in (tmp_path / "out" / "results.md").read_text()


def row(name, accuracies, *, method=None, epsilon=None, parameters=1):
    """One recipe's row of a set."""
    mean = sum(accuracies) / len(accuracies)
    place = {"method": method or name, "shards": 1, "epsilon": epsilon}
    return {"name": name, **place, "accuracy": mean, "accuracies": accuracies, "parameters": parameters}


def test_means_are_over_sets_before_they_are_over_seeds():
    one = {"rows": [row("a", [0.2, 0.4], parameters=5), row("b", [0.1, 0.1])]}
    two = {"rows": [row("a", [0.6, 0.4], parameters=7), {**row("b", [0.3]), "accuracy": None}]}
    (found,) = mean_over_sets({"one": one, "two": two})
    assert (found["name"], found["parameters"], found["accuracy"]) == ("a", 7, pytest.approx(0.4))
    assert found["interval"] == pytest.approx([0.4, 0.4])


def test_differences_are_paired_over_seeds_and_stay_under_the_same_privacy():
    plain = [row("gift", [0.5, 0.9, 0.7]), row("lora", [0.4, 0.8, 0.6]), row("head", [0.9, 0.5, 0.4])]
    private = [row("lora, epsilon 8", [0.1] * 3, method="lora", epsilon=8.0)]
    sets = {"one": {"rows": plain + private}, "two": {"rows": plain + private}}
    found = {item["minus"]: item for item in differences(sets, against="gift")}
    assert found.keys() == {"lora", "head"}
    assert found["lora"]["difference"] == pytest.approx(0.1)
    assert found["lora"]["half_width"] == pytest.approx(0, abs=1e-12)  # the seeds differ by 0.4, the pairs by nothing
    pairs = [-0.4, 0.4, 0.3]
    assert found["head"]["half_width"] == pytest.approx(4.302653 * statistics.stdev(pairs) / 3**0.5)
    assert differences(sets, against="prompts") == []
    (single,) = differences({"one": {"rows": [row("gift", [0.5]), row("head", [0.4])]}}, against="gift")
    assert single["half_width"] is None
