"""Records of edits: there and back, and those of the first releases, which name no editor."""

from __future__ import annotations

import pytest

from privshard.core.edit import EditRecord

RECORD = EditRecord("e", "b", "tangent", None, 1.0, ("attention:1",), ("c",), ("d",), editor="heads")


def test_there_and_back():
    assert EditRecord.from_json(RECORD.to_json()) == RECORD


@pytest.mark.parametrize(("locator", "editor"), [(None, "gradient"), ("f" * 64, "locator")])
def test_a_record_without_an_editor_is_the_gradients_or_the_locators(locator, editor):
    old = {name: value for name, value in RECORD.to_json().items() if name != "editor"}
    assert EditRecord.from_json({**old, "locator": locator}).editor == editor
