"""The command `sweep`: which recipes it makes of files and methods, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from privshard.cli import main

DIGITS = Path(__file__).parents[2] / "jobs" / "recipes" / "digits.yaml"


def test_recipes_are_named_by_file_and_method(calls, tmp_path):
    table = tmp_path / "table.md"
    given = ["sweep", str(DIGITS), "--out", "o.jsonl", "--method", "lora", "--method", "head", "--rates", "1e-3,0.1"]
    given += ["--seeds", "2", "--folds", "4", "--limit", "9", "--budget-s", "60", "--table", str(table)]
    assert main([*given, "--set", "shards=2"]) == 0
    verb, (recipes,), keywords = calls[-1]
    assert verb == "sweep"
    assert {name: (recipe.method.name, recipe.shards) for name, recipe in recipes.items()} == {
        "digits/lora": ("lora", 2),
        "digits/head": ("head", 2),
    }
    assert callable(keywords.pop("on_progress"))
    assert keywords == {
        "out": "o.jsonl", "rates": [1e-3, 0.1], "seeds": 2, "tries": None, "folds": 4, "limit": 9, "budget_s": 60.0
    }  # fmt: skip
    assert table.read_text() == "| recipe |\n| --- |\n| digits |\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--rates", "a,b"], "rates: expected numbers"), ([str(DIGITS)], "got digits twice")],
)
def test_what_cannot_be_read_is_refused(calls, capfd, given, message):
    assert main(["sweep", str(DIGITS), "--out", "o.jsonl", "--json", *given]) == 2
    assert message in json.loads(capfd.readouterr().out)["error"]["message"]
