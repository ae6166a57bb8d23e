"""The step benchmark, on a small model: every adapter has a figure, and a private step is the library's."""

from __future__ import annotations

from jobs.benchmarks import adaptation_step
from privshard.api.recipe_methods import METHODS


def test_every_method_has_a_figure():
    given = ["--model", "vit_tiny_patch16_224", "--img-size", "32", "--device", "cpu", "--batch", "2", "--repeats", "1"]
    report = adaptation_step.main(given)
    rows = {row["name"]: row for row in report["rows"]}
    expected = {adaptation_step.PEER, *(set(METHODS) - set(adaptation_step.LINEAR))}
    assert expected | {"lora, private"} <= rows.keys()
    assert all(row["error"] is None and row["median_s"] > 0 for row in rows.values())
    assert rows[adaptation_step.PEER]["ratio"] == 1.0
    assert all(row["floor_s"] == report["rows"][0]["floor_s"] > 0 for row in rows.values())
