"""The step benchmark, on a small model: every adapter has a figure, and a private step is the library's."""

from __future__ import annotations

import gc

import torch

from jobs.benchmarks import adaptation_step
from privshard.api.recipe_methods import METHODS


def optimizers() -> int:
    return sum(type(item) is torch.optim.AdamW for item in gc.get_objects())


def test_every_method_has_a_figure_and_is_alone_when_its_memory_is_measured(monkeypatch):
    before, seen, watched = optimizers(), [], adaptation_step.peak_memory

    def watch(step, *, device):
        seen.append(optimizers() - before)
        return watched(step, device=device)

    monkeypatch.setattr(adaptation_step, "peak_memory", watch)
    given = ["--model", "test_vit", "--img-size", "32", "--device", "cpu", "--batch", "2", "--repeats", "1"]
    report = adaptation_step.main(given)
    rows = {row["name"]: row for row in report["rows"]}
    expected = {adaptation_step.PEER, *(set(METHODS) - set(adaptation_step.LINEAR))}
    assert expected | {"lora, private"} <= rows.keys()
    assert all(row["error"] is None and row["median_s"] > 0 for row in rows.values())
    assert rows[adaptation_step.PEER]["ratio"] == 1.0
    assert all(row["floor_s"] == report["rows"][0]["floor_s"] > 0 for row in rows.values())
    assert seen == [1] * len(rows)
