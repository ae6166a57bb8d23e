"""The commands around decompositions: what they ask of the library."""

from __future__ import annotations

import json

import pytest

from privshard.cli import main


def test_they_pass_what_they_were_given(calls, tmp_path):
    (tmp_path / "r.yaml").write_text("components: [1, 1]\n")
    assert main(["decompose", str(tmp_path / "r.yaml"), "-w", "d", "--set", "basis.start=1"]) == 0
    verb, (recipe,), keywords = calls[-1]
    assert (verb, recipe.components, recipe.basis.start, keywords["workspace"]) == ("decompose", (1, 1), 1, "d")
    assert callable(keywords["on_progress"])
    assert main(["recompose", "d", "-o", "m", "--depth", "2,2,4,2", "--components", "3", "--mode", "tied"]) == 0
    expected = {"out": "m", "depth": [2, 2, 4, 2], "components": 3, "mode": "tied"}
    assert calls[-1] == ("recompose", ("d",), expected)
    assert main(["analyse", "m", "--weights", "random", "--arg", "img_size=56", "--html", "t.html"]) == 0
    assert calls[-1] == ("analyse", ("m",), {"weights": "random", "args": {"img_size": 56}, "html": "t.html"})
    assert main(["sizes", "d", "--depths", "2,4", "--by", "memory", "--max-memory-mb", "3", "--rows", "all"]) == 0
    _, _, keywords = calls[-1]
    given = {key: value for key, value in keywords.items() if value is not None and key != "on_progress"}
    assert given == {"depths": [2, 4], "by": "memory", "max_memory_mb": 3.0, "split": "all", "device": "auto"}


@pytest.mark.parametrize(
    "arguments", [["recompose", "d", "-o", "m", "--depth", "four"], ["sizes", "d", "--depths", "1;2"]]
)
def test_numbers_that_are_none_are_bad_input(arguments, calls, capfd):
    assert main([*arguments, "--json"]) == 2
    assert "expected whole numbers with commas" in json.loads(capfd.readouterr().out)["error"]["message"]
    assert not calls
