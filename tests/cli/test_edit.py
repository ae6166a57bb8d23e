"""`privshard edit`: what is passed on, what is printed, and the exit status."""

from __future__ import annotations

import json

import pytest

from privshard.cli import main
from privshard.core.errors import InputError

EDITED = {
    "target": "w", "status": "edited", "edit": "e" * 64, "keep": 0.1, "locator": None, "places": "ffn:1", "note": "n",
    "model_before": "v0001", "model_after": "v0002", "statement": "There is no differential privacy.", "success": 1.0,
    "images": [{"image": "a.png", "label": "cat", "before": "dog", "after": "cat"}], "locality": None,
    "num_sensitive": 0, "conflicts": [{"edit": "f" * 64, "images_lost": 1}],
    "cost": {"num_weights": 10, "num_neurons": 2, "steps": 5, "learn_s": 0.5, "bytes": 48},
}  # fmt: skip


@pytest.fixture
def calls(monkeypatch) -> list:
    seen: list = []

    def put(module, name, result):
        def verb(*args, **kwargs):
            seen.append((name, args, {key: value for key, value in kwargs.items() if key != "on_progress"}))
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(f"privshard.api.{module}.{name}", verb)

    put("edit_apply", "edit_apply", EDITED)
    reverted = {"reverted": ["e" * 64], "left": [], "model_before": "v0002", "model_after": "v0003", "statement": "s"}
    put("edit_revert", "edit_revert", reverted)
    put("edit_export", "edit_export", {"target": "m", "out": "o", "edits": []})
    trained = {
        "locator": "l" * 64,
        "file": "f",
        "places": "ffn:1",
        "num_parameters": 7,
        "num_images": 3,
        "statement": "s",
    }
    put("edit_train", "edit_train_locator", trained)
    put("edit_search", "edit_search", InputError("search: expected groups.", remedy="Give more."))
    return seen


def test_apply_passes_everything_on_and_tells_what_happened(calls, capsys):
    images = ["-i", "a.png", "-l", "cat", "-i", "b.png", "-l", "dog", "--subject", "x", "--subject", "y"]
    how = ["--keep", "0.1", "--locator", "f", "--lr", "0.5", "--steps", "7", "--model", "vit", "--sensitive", "d"]
    status = main(["edit", "apply", "w", *images, *how])
    shown = capsys.readouterr().out
    assert status == 0
    assert calls == [
        ("edit_apply", ("w",), {
            "images": ["a.png", "b.png"], "labels": ["cat", "dog"], "subjects": ["x", "y"], "keep": 0.1, "locator": "f",
            "places": None, "lr": 0.5, "steps": 7, "sensitive_data": "d", "model": "vit",
        })
    ]  # fmt: skip
    for text in (
        "Edited: eeeeeeeeeeee",
        "a.png: dog -> cat",
        "locality unknown",
        "10 weights",
        "lost 1 image",
        "v0002",
    ):
        assert text in shown


def test_json_is_the_result_alone(calls, capsys):
    assert main(["edit", "apply", "w", "-i", "a.png", "-l", "cat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == EDITED


def test_the_other_commands(calls, capsys):
    assert main(["edit", "revert", "w", "--edit", "e1", "-e", "e2"]) == 0
    assert main(["edit", "revert", "w", "--all"]) == 0
    assert main(["edit", "export", "m", "--model", "vit", "-o", "o"]) == 0
    assert main(["edit", "train-locator", "w", "--episodes", "8", "--depth", "1", "--places", "ffn:1"]) == 0
    names = [name for name, _, _ in calls]
    assert names == ["edit_revert", "edit_revert", "edit_export", "edit_train_locator"]
    assert [call[2].get("edits") for call in calls[:2]] == [["e1", "e2"], ()]
    assert (calls[3][2]["options"].episodes, calls[3][2]["options"].depth, calls[3][2]["places"]) == (8, 1, "ffn:1")
    shown = capsys.readouterr().out
    assert "Reverted 1 edit(s): eeeeeeeeeeee" in shown
    assert "Trained locator llllllllllll" in shown


def test_errors_have_their_status(calls, capsys):
    assert main(["edit", "search", "w", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "search: expected groups."
    assert main(["edit", "apply", "w"]) == 2
