"""GUARANTEES.md names tests that exist, and makes no claim without assumptions and a test."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (files("privshard.privacy") / "GUARANTEES.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
CLAIMS = re.findall(r"^\*\*([A-Z]\d+)\. .*?(?=^\*\*[A-Z]\d+\. |^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL)


@cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_named_test_exists(path, name):
    assert name.startswith("test_")
    assert name in functions(path)


def test_every_claim_has_assumptions_and_a_test():
    parts = re.split(r"^(?=\*\*[A-Z]\d+\. )", TEXT, flags=re.MULTILINE)[1:]
    assert len(parts) == len(CLAIMS) >= 20
    for part in parts:
        body = part.split("\n## ")[0]
        assert "\n- Assumes: " in body, body[:40]
        assert re.search(r"\n- Held by: `tests/", body), body[:40]


def test_claims_are_one_sentence_each():
    for claim in re.findall(r"^\*\*[A-Z]\d+\. [^*]+\*\*(.*?)\n- Assumes", TEXT, flags=re.MULTILINE | re.DOTALL):
        assert len(re.findall(r"\.(?:\s|$)", claim.strip())) == 1, claim


def test_no_bound_is_called_a_measurement():
    assert "measured epsilon" not in TEXT.lower()
