"""The accuracy benchmark in a tiny form: cells, resuming, tables and plots."""

from __future__ import annotations

import json

import pytest
import timm
from safetensors.torch import save_file

from jobs.benchmarks import accuracy
from jobs.benchmarks._accuracy_cells import Cell, all_cells, headline
from jobs.benchmarks._accuracy_report import markdown

MODEL = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a data set of twelve rows a split, and the weights of an untrained model."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    place = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": f"{number}.png"},
                "label": number % 3,
                "subject": f"s{number // 2}",
                "split": "train" if number < 12 else "test",
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), place / "flowers12.parquet")
    save_file(timm.create_model(MODEL, num_classes=3).state_dict(), place / "weights.safetensors")
    return place


def test_cells_run_once_and_resume(folder, tmp_path, monkeypatch, capsys):
    cells = [Cell("flowers12", "head", 0, shards, epsilon) for shards in (1, 2) for epsilon in (None, 8.0)]
    monkeypatch.setattr(accuracy, "all_cells", lambda **_: cells)
    given = [
        "--data", str(folder), "--weights", str(folder / "weights.safetensors"), "--model", MODEL,
        "--out", str(tmp_path), "--cache", str(tmp_path / "cache"), "--sets", "flowers12", "--limit", "12",
    ]  # fmt: skip
    assert accuracy.main([*given, "--budget-s", "0"]) == 0
    assert not (tmp_path / accuracy.RESULTS).exists()
    assert accuracy.main(given) == 0
    lines = (tmp_path / accuracy.RESULTS).read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert {item["key"] for item in results} == {cell.key for cell in cells}
    assert all(0 <= item["accuracy"] <= 1 and item["num_test"] == 12 for item in results)
    composed = [item for item in results if item["shards"] == 2]
    assert all(item["removed"]["0.0"] == item["accuracy"] == item["ensemble"] for item in composed)  # linear: the same
    (tmp_path / accuracy.RESULTS).write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    capsys.readouterr()
    (tmp_path / accuracy.RESULTS).write_text("\n".join(lines[:-1]) + "\n")
    assert accuracy.main(given) == 0  # only the lost cell runs again, from the cached encodings, to the same figure
    again = [json.loads(line) for line in (tmp_path / accuracy.RESULTS).read_text().splitlines()]
    assert again[:-1] == results[:-1]
    assert again[-1]["accuracy"] == results[-1]["accuracy"]
    table = (tmp_path / accuracy.TABLE).read_text()
    assert "| head | 2 |" in table
    assert "no privacy" in table
    assert {path.name for path in tmp_path.glob("*.png")} == {"flowers12.png"}


def test_a_cell_that_fails_is_reported_and_runs_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "all_cells", lambda **_: [Cell("flowers12", "unknown", 0, 1, None)])
    given = ["--data", str(folder), "--weights", str(folder / "weights.safetensors"), "--model", MODEL,
             "--out", str(tmp_path), "--sets", "flowers12"]  # fmt: skip
    assert accuracy.main(given) == 1
    assert "error" in json.loads((tmp_path / accuracy.RESULTS).read_text())
    assert accuracy.load_results(tmp_path / accuracy.RESULTS) == {}


def test_every_cell_is_there_once_and_the_headline_comes_first():
    cells, first = all_cells(), headline()
    assert len({cell.key for cell in cells}) == len(cells)
    assert cells[: len(first)] == first
    assert {cell.data for cell in cells} == {"sign_language_digits", "flowers12", "cifar10", "omniglot_small"}
    assert {cell.blocks for cell in cells if cell.method == "tangent"} == {1, 4, 12}
    assert {cell.unit for cell in cells if cell.data == "cifar10"} == {"example"}


def test_seeds_are_averaged_with_their_spread():
    one = {**Cell("d", "tangent", 4, 1, 3.0).to_json(), "accuracy": 0.5}
    text = markdown([one, {**one, "seed": 1, "accuracy": 0.7}])
    assert "| tangent, 4 blocks | 1 | 0.600 (0.500 to 0.700; 2) |" in text


def test_shards_that_are_not_linear_have_their_ensemble_beside_their_average():
    linear = {**Cell("d", "tangent", 12, 5, None).to_json(), "accuracy": 0.5, "ensemble": 0.5}
    full = {**Cell("d", "full", 12, 5, None).to_json(), "accuracy": 0.4, "ensemble": 0.6}
    alone = {**Cell("d", "full", 12, 1, None).to_json(), "accuracy": 0.7}
    rows = markdown([alone, full, linear]).splitlines()[4:]
    assert [row.split("|")[1:4] for row in rows if row] == [
        [" tangent, 12 blocks ", " 5 ", " 0.500 "],
        [" full, 12 blocks ", " 1 ", " 0.700 "],
        [" full, 12 blocks ", " 5 ", " 0.400 "],
        [" full, 12 blocks: ensemble ", " 5 ", " 0.600 "],
    ]
