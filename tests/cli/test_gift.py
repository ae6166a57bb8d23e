"""The gift commands pass on what was asked, and say what was done."""

from __future__ import annotations

import json

import jsonschema
import pytest

from privshard.api import gift, gift_explain, schemas
from privshard.cli.app import run
from privshard.core.errors import InputError

BASE = {"name": "vit", "digest": "d" * 64}
SCORE = {"mean": 0.5, "deviation": 0.125}
SET = {"num_generators": 2, "pointing": SCORE, "iou": SCORE, "best_iou": {"mean": None, "deviation": None}}
RESULTS = {
    "merge": {
        "out": "m.safetensors",
        "base": BASE,
        "method": {"name": "gift", "rank": 16},
        "sources": {"c" * 64: 1.0},
        "num_changed": 14,
        "num_tensors": 150,
        "max_logit_difference": 2e-7,
        "loads_into": {"callable": "timm.create_model", "arguments": {"model_name": "vit", "num_classes": 3}},
        "classes": ["a", "b", "c"],
    },
    "unmerge": {
        "out": "b.safetensors",
        "base": BASE,
        "how": "arithmetic",
        "exact": False,
        "bound": 3e-8,
        "reason": "It was subtracted.",
    },
    "export": {
        "out": "g.safetensors",
        "component": "c" * 64,
        "base": BASE,
        "method": {"name": "gift"},
        "num_parameters": 24576,
        "num_head_parameters": 30,
    },
    "explain": {
        "source": "w",
        "base": BASE,
        "method": {"name": "gift"},
        "num_parameters": 24576,
        "components": ["c" * 64],
        "images": ["x.png"],
        "layers": ["blocks.0.attn.proj"],
        "clusters": [1],
        "localization": {"num_images": 1, "area": 0.25, "trained": SET, "untrained": SET, "random": SET},
        "png": "maps.png",
    },
    "plant": {"folder": "p", "num_images": 6, "classes": ["disc", "star"], "size": 64, "seed": 3},
}
CASES = {
    "merge": (
        ["merge", "w", "--out", "m", "--into", "x", "--component", "cc"],
        ("w",),
        {"out": "m", "into": "x", "component": "cc"},
        "which loads strictly into timm.create_model(model_name='vit', num_classes=3)",
    ),
    "unmerge": (
        ["unmerge", "m", "--from", "w", "--out", "b"],
        ("m",),
        {"source": "w", "out": "b", "base": None},
        "each weight to within 3e-08",
    ),
    "export": (["export", "w", "-o", "g"], ("w",), {"out": "g", "component": None}, "24576 parameters and 30 of the"),
    "explain": (
        [
            "explain",
            "w",
            "x.png",
            "y.png",
            "--png",
            "p",
            "--html",
            "h",
            "--masks",
            "f",
            "--clusters",
            "4",
            "--seeds",
            "2",
        ],
        ("w", ["x.png", "y.png"]),
        {"png": "p", "html": "h", "masks": "f", "boxes": None, "clusters": 4, "seeds": 2, "component": None},
        "0.500 ± 0.125",
    ),
    "plant": (
        ["plant", "p", "--num", "6", "--size", "64", "--seed", "3"],
        ("p",),
        {"num": 6, "size": 64, "seed": 3},
        "Wrote 6 images of 64 pixels to p",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_command_asks_for_what_was_given_and_says_what_was_done(monkeypatch, capsys, name):
    arguments, positional, keywords, words = CASES[name]
    seen = []
    home = gift if name in ("merge", "unmerge", "export") else gift_explain
    monkeypatch.setattr(home, name, lambda *args, **kwargs: seen.append((args, kwargs)) or RESULTS[name])
    assert run(["gift", *arguments]) == 0
    assert seen == [(positional, keywords)]
    assert words in " ".join(capsys.readouterr().out.split())
    assert run(["gift", *arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == RESULTS[name]
    jsonschema.validate(printed, schemas.load(f"gift_{name}"))


def test_a_refusal_is_bad_input(monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise InputError("merged already", remedy="Merge into the base.")

    monkeypatch.setattr(gift, "merge", refuse)
    assert run(["gift", "merge", "w", "--out", "m", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "bad_input"


def test_nothing_measured_is_said(monkeypatch, capsys):
    result = {**RESULTS["explain"], "localization": None}
    monkeypatch.setattr(gift_explain, "explain", lambda *args, **kwargs: result)
    assert run(["gift", "explain", "w", "x.png"]) == 0
    assert "nothing is measured" in capsys.readouterr().out


def test_help_shows_what_a_box_is(capsys):
    assert run(["gift", "explain", "--help"]) == 0
    assert "[left, top, right, bottom]" in " ".join(capsys.readouterr().out.replace("│", " ").split())
