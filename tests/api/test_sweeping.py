"""The sweep: which rows are seen when, which rate wins, and how it continues after an interruption."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from tiny_digits import people

from privshard.api import schemas, sweep
from privshard.api.cells import Cell, Cells
from privshard.api.sweeping import interval
from privshard.api.trial import Rows, Score, Trial
from privshard.core.errors import InputError, ResourceError

RATES = (0.01, 0.1, 1.0)


@pytest.fixture
def recipes(make_recipe):
    plain = {"privacy": {"epsilon": None}, "training": {"steps": 2}}
    return {"head": make_recipe(method={"name": "head"}, **plain), "bitfit": make_recipe(method={"name": "bitfit"})}


@pytest.fixture
def trials(monkeypatch):
    """Trainings that cost nothing: the rate 0.1 is best on validation, larger ones on test rows."""
    seen = []

    def run(self: Trial, *, lr: float, seed: int, train_B: np.ndarray, score_B: np.ndarray) -> Score:
        subjects = [{self.rows.subjects[row] for row in rows} for rows in (train_B, score_B)]
        testing = bool(self.rows.test_B[score_B].any())
        seen.append((self.recipe.method.name, lr, seed, testing, *subjects))
        accuracy = min(lr, 1.0) if testing else {0.01: 0.2, 0.1: 0.6, 1.0: 0.5}[lr] + 0.01 * seed
        return Score(accuracy, len(score_B), 0.5, None)

    monkeypatch.setattr(Trial, "run", run)
    return seen


def test_rates_are_chosen_on_train_subjects_and_test_rows_are_scored_once(recipes, trials, tmp_path):
    result = sweep(recipes, out=str(tmp_path / "cells"), rates=RATES, seeds=2, folds=2)
    jsonschema.validate(result, schemas.load("sweep"))
    assert result["complete"]
    test_people = {row["subject"] for row in people() if row["split"] == "test"}
    for _, lr, _, testing, train, scored in trials:
        assert not train & scored
        assert testing == (scored == test_people)
        assert lr == 0.1 or not testing
        assert not train & test_people
    assert [(name, seed) for name, _, seed, testing, *_ in trials if testing] == [
        (name, seed) for name in ("head", "bitfit") for seed in (0, 1)
    ]
    folds = {seed: scored for _, _, seed, testing, _, scored in trials if not testing}
    assert folds[0] | folds[1] == {row["subject"] for row in people() if row["split"] == "train"}
    head, bitfit = result["rows"]
    assert (head["lr"], head["accuracy"], head["accuracies"]) == (0.1, 0.1, [0.1, 0.1])
    assert [item["accuracy"] for item in head["validation"]] == pytest.approx([0.205, 0.605, 0.505])
    assert head["parameters"] == 0 < bitfit["parameters"]
    assert (head["epsilon"], bitfit["epsilon"]) == (None, 8.0)
    assert not result["selection"]["private"]
    assert "does not cover that choice" in result["selection"]["note"]
    assert "| bitfit | bitfit | 2 | 8 |" in result["table"]


def test_it_continues_after_the_last_whole_cell(recipes, trials, tmp_path):
    out = tmp_path / "cells"
    whole = sweep(recipes, out=str(out), rates=RATES, seeds=2, folds=2)
    lines = out.read_bytes().splitlines(keepends=True)
    trials.clear()
    assert sweep(recipes, out=str(out), rates=RATES, seeds=2, folds=2) == whole
    assert trials == []
    out.write_bytes(b"".join(lines[:-3]) + lines[-3][:10])
    assert sweep(recipes, out=str(out), rates=RATES, seeds=2, folds=2) == whole
    assert len(trials) == 3
    assert out.read_bytes().splitlines(keepends=True) == lines
    assert all(json.loads(line) for line in lines)


def test_it_stops_in_time_and_says_so(recipes, trials, tmp_path):
    result = sweep(recipes, out=str(tmp_path / "cells"), rates=RATES, seeds=2, folds=2, budget_s=0.0)
    assert not result["complete"]
    assert trials == []
    assert result["rows"][0]["accuracy"] is None
    assert sweep(recipes, out=str(tmp_path / "cells"), rates=RATES, seeds=2, folds=2)["complete"]


def test_what_does_not_fit_is_refused(recipes, trials, tmp_path, make_recipe):
    out = str(tmp_path / "cells")
    sweep(recipes, out=out, rates=RATES, seeds=1, folds=2)
    with pytest.raises(InputError, match=r"another one.*Give another file"):
        sweep(recipes, out=out, rates=RATES[:2], seeds=1, folds=2)
    (tmp_path / "text").write_text("a diary\n")
    with pytest.raises(InputError, match="JSON lines of a sweep"):
        sweep(recipes, out=str(tmp_path / "text"))
    other = make_recipe(data={"nominal_examples": 25})
    with pytest.raises(InputError, match="on the same data, but other and head differ"):
        sweep({**recipes, "other": other}, out=out)
    changed = make_recipe(method={"name": "head"}, training={"augmentations": 2})
    with pytest.raises(InputError, match=r"augmentations: expected 0 in a sweep, got 2"):
        sweep({"changed": changed}, out=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    for wrong, message in (({"rates": (0.1, 0.1)}, "rates"), ({"seeds": 0}, "seeds"), ({"folds": 1}, "folds")):
        with pytest.raises(InputError, match=message):
            sweep(recipes, out=out, **wrong)
    with pytest.raises(InputError, match="at least one recipe"):
        sweep({}, out=out)


def test_trainings_learn_and_are_a_function_of_their_seed(make_recipe, tmp_path):
    recipe = make_recipe(
        method={"name": "lora", "rank": 2}, privacy={"epsilon": None}, training={"steps": 4, "sample_rate": 1.0}
    )
    first = sweep({"lora": recipe}, out=str(tmp_path / "one"), rates=(1e-6, 3e-2), seeds=1, folds=2)
    again = sweep({"lora": recipe}, out=str(tmp_path / "two"), rates=(3e-2,), seeds=1, folds=2)
    assert first["rows"][0]["accuracies"] == again["rows"][0]["accuracies"]
    low, high = (item["accuracy"] for item in first["rows"][0]["validation"])
    assert high > low
    assert first["rows"][0]["lr"] == 3e-2


def test_rows_without_a_split_hold_a_tenth_of_the_subjects_out(make_recipe):
    from privshard.data.examples import SourceRow

    source = [SourceRow(image=bytes([row]), label="0", subject=f"s{row // 2}") for row in range(200)]
    rows = Rows.of(iter(source))
    assert 0 < rows.test_B.sum() < 60
    assert all(rows.test_B[0::2] == rows.test_B[1::2])
    assert (rows.fold_B(5)[0::2] == rows.fold_B(5)[1::2]).all()
    with pytest.raises(InputError, match="train and test rows"):
        Rows.of(iter(source[:1]))
    limited = Rows.of(iter(source), limit=3)
    assert (limited.test_B.sum(), (~limited.test_B).sum()) == (3, 3)
    backwards = Rows.of(iter(source[::-1]), limit=3)
    assert sorted(backwards.images) == sorted(limited.images) != sorted(image.image for image in source[:3])
    assert limited.images == tuple(row.image for row in source if row.image in limited.images)


def test_limited_rows_are_of_every_class_where_the_file_is_sorted_by_class():
    from privshard.data.examples import SourceRow

    source = [
        SourceRow(image=bytes([row]), label=str(row // 20), subject=str(row), split="train") for row in range(200)
    ]
    source += [SourceRow(image=bytes([row, 1]), label=str(row // 20), subject="e", split="eval") for row in range(200)]
    limited = Rows.of(iter(source), limit=100)
    assert len({label for label, test in zip(limited.labels, limited.test_B, strict=True) if not test}) == 10


def test_intervals_are_students():
    from scipy.stats import t

    values = [0.5, 0.6, 0.7]
    low, high = interval(values)
    wanted = t.interval(0.95, 2, loc=0.6, scale=0.1 / 3**0.5)
    assert (low, high) == pytest.approx(wanted)


def test_a_file_that_was_cut_off_anywhere_goes_on(tmp_path):
    path, cell = tmp_path / "cells.jsonl", Cell("head", "validation", 0.1, 0, 0.5, 10, 1.0, None)
    with Cells.open(path, sweep="abc") as cells:
        cells.add(cell)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with Cells.open(path, sweep="abc") as cells:
            assert len(cells) == (size == len(whole))
            if not len(cells):
                cells.add(cell)
        assert path.read_bytes() == whole


def test_a_file_takes_one_sweep_at_a_time(tmp_path):
    path = tmp_path / "cells.jsonl"
    with Cells.open(path, sweep="abc"):
        held = path.read_bytes()
        with pytest.raises(ResourceError, match="written by another sweep"), Cells.open(path, sweep="abc"):
            pass
        assert path.read_bytes() == held
    with Cells.open(path, sweep="abc") as cells:
        assert len(cells) == 0
