"""The editing benchmark in its smallest form: every editor, resumed, with its report and plots."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from jobs.benchmarks import editing

MODEL = "test_vit"
TINY = ["--steps", "2", "--episodes", "2", "--batch", "2", "--fit-steps", "2", "--depth", "1", "--edits", "1",
        "--groups", "2", "--validation-groups", "1", "--least", "2", "--max-members", "2", "--margin", "1.0",
        "--timed-steps", "1", "--timed-batch", "2", "--draws", "50", "--search-blocks", "9",
        "--device", "cpu"]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A random model with three errors in pairs, and two sensitive examples."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=6)
    torch.nn.init.normal_(model.head.weight, std=0.02)
    torch.nn.init.constant_(model.head.bias[:1], 2.0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(4):
        sink = io.BytesIO()
        Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(sink, "PNG")
        contents.append(sink.getvalue())
    errors = [(content, label) for label in (1, 2, 3) for content in contents[:2]]
    sample = [(contents[0], 0), (contents[1], 0), (contents[2], 1), (contents[3], 2)]
    for name, rows in (("tiny_imagenet", errors), ("imagenet_sample", sample)):
        table = {"image": [{"bytes": c, "path": ""} for c, _ in rows], "label": [label for _, label in rows]}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    return tmp_path


def run(folder, *more):
    where = ["--data", str(folder), "--weights", str(folder / "model.safetensors"), "--model", MODEL]
    return editing.main([*where, "--out", str(folder / "out"), *TINY, *more])


def test_every_editor_is_run_resumed_and_reported(folder, monkeypatch):
    every = editing.editors
    monkeypatch.setattr(editing, "editors", lambda *a: [replace(e, settings=e.settings[-1:]) for e in every(*a)])
    begun = run(folder, "--budget-s", "0")
    assert not begun["complete"]
    whole = run(folder, "--budget-s", "600")
    assert whole["complete"]
    assert set(whole["areas"]) == {
        "locator", "gradient mask", "magnitude mask", "random mask", "FT-L1", "FT-L2", "fine-tuning", "LoRA",
        "rank one", "attention heads",
    }  # fmt: skip
    assert set(whole["ours_minus"]) == set(whole["areas"]) - {"locator"}
    assert set(whole["best_minus"]) == set(whole["areas"]) - {whole["best"]}
    assert all(difference["value"] >= 0 for difference in whole["best_minus"].values())
    assert not set(whole["data"]["tuned"]) & set(whole["data"]["reported"])
    assert whole["parts"]["timing"]["value"]["edit_s"] > 0
    monkeypatch.setattr(editing, "_curve", None)  # whatever is run again fails
    again = run(folder, "--budget-s", "600")
    assert again["areas"] == whole["areas"]
    stored = json.loads((folder / "out/report.json").read_text())
    assert stored["ours_minus"] == whole["ours_minus"]
    page = (folder / "out/report.md").read_text()
    assert "| FT-L1 |" in page
    assert "Largest area" in page
    for name in ("fronts", "mask", "before_after", "search"):
        assert (folder / f"out/{name}.png").stat().st_size > 5000
