"""The benchmark of cluster maps runs and gives figures; how large they are is not for a test."""

from __future__ import annotations

import json

import pytest

from jobs.benchmarks import gift_maps


def test_maps_are_scored_by_seed(tmp_path, capsys):
    options = {"seeds": 2, "steps": 2, "batch": 4, "train-images": 12, "test-images": 6, "rank": 4}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    report = gift_maps.main([*arguments, "--json", str(tmp_path / "m.json")])
    assert [item["seed"] for item in report["seeds"]] == [0, 1]
    one, two = report["seeds"]
    gap = [item["trained"]["iou"] - item["untrained"]["iou"] for item in (one, two)]
    assert report["scores"]["trained - untrained"]["iou"][0] == pytest.approx(sum(gap) / 2)
    assert one["untrained"] != two["untrained"]
    assert one["untrained"] != one["trained"]
    assert report["scores"]["random"]["iou"][0] < report["scores"]["untrained"]["best_iou"][0]
    json.loads((tmp_path / "m.json").read_text())
