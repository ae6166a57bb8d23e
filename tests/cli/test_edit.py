"""`privshard edit`: what is passed on, what is said, and the exit status."""

from __future__ import annotations

import json

from privshard.cli import main
from privshard.core.errors import InputError


def test_apply_passes_everything_on_and_tells_what_happened(calls, capsys):
    images = ["-i", "a.png", "-l", "cat", "-i", "b.png", "-l", "dog", "--subject", "x", "--subject", "y"]
    how = ["--keep", "0.1", "--locator", "f", "--lr", "0.5", "--steps", "7", "--model", "vit", "--sensitive", "d",
           "--editor", "locator", "--unlabeled", "u"]  # fmt: skip
    assert main(["edit", "apply", "w", *images, *how]) == 0
    verb, positional, keywords = calls[-1]
    assert callable(keywords.pop("on_progress"))
    assert (verb, positional) == ("edit_apply", ("w",))
    assert keywords == {
        "images": ["a.png", "b.png"], "labels": ["cat", "dog"], "subjects": ["x", "y"], "keep": 0.1, "locator": "f",
        "editor": "locator", "unlabeled": "u", "places": None, "lr": 0.5, "steps": 7, "sensitive_data": "d",
        "model": "vit",
    }  # fmt: skip
    shown = capsys.readouterr().out
    for text in (
        "Edited: eeeeeeeeeeee",
        "a.png: dog -> cat",
        "locality unknown",
        "10 weights",
        "lost 1 image",
        "v0002",
    ):
        assert text in shown


def test_what_is_not_given_is_left_to_the_library(calls):
    assert main(["edit", "apply", "w", "-i", "a.png", "-l", "cat"]) == 0
    assert [calls[-1][2][name] for name in ("editor", "keep", "locator", "places", "lr")] == [None] * 5


def test_the_other_commands(calls):
    assert main(["edit", "revert", "w", "--edit", "e1", "-e", "e2"]) == 0
    assert calls[-1] == ("edit_revert", ("w",), {"edits": ["e1", "e2"], "everything": False})
    assert main(["edit", "revert", "w", "--all"]) == 0
    assert calls[-1] == ("edit_revert", ("w",), {"edits": (), "everything": True})
    assert main(["edit", "export", "m", "--model", "vit", "-o", "o"]) == 0
    assert calls[-1] == ("edit_export", ("m",), {"model": "vit", "out": "o"})
    assert main(["edit", "train-locator", "w", "--episodes", "8", "--depth", "1", "--places", "ffn:1"]) == 0
    options = calls[-1][2]["options"]
    assert (options.episodes, options.depth, calls[-1][2]["places"]) == (8, 1, "ffn:1")
    assert main(["edit", "search", "w", "--plot", "f.svg", "--least", "2"]) == 0
    assert (calls[-1][2]["plot"], calls[-1][2]["least"]) == ("f.svg", 2)


def test_no_edit_is_said_to_be_none(calls, monkeypatch, results, capsys):
    for status, words in (("already_right", "already right"), ("not_learnt", "nothing was changed")):
        calls.replace(monkeypatch, "edit_apply", {**results["edit_apply"], "status": status, "edit": None})
        assert main(["edit", "apply", "w", "-i", "a.png", "-l", "cat"]) == 0
        assert words in capsys.readouterr().out


def test_errors_have_their_status(calls, monkeypatch, capsys):
    calls.replace(monkeypatch, "edit_search", InputError("search: expected groups.", remedy="Give more."))
    assert main(["edit", "search", "w", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "search: expected groups."
    assert main(["edit", "apply", "w"]) == 2
