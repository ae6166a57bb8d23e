"""The schemas of the outputs are schemas, and refuse what the contract does not know."""

from __future__ import annotations

import jsonschema
import pytest

from privshard.api import schemas
from privshard.core.errors import InputError


@pytest.mark.parametrize("name", schemas.NAMES)
def test_every_schema_is_one(name):
    schema = schemas.load(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) <= set(schema["properties"])


def test_no_schema_is_left_out():
    from importlib.resources import files

    stored = {entry.name for entry in files(schemas).iterdir() if entry.name.endswith(".json")}
    assert stored == {f"{name}.json" for name in schemas.NAMES}


def test_an_unknown_schema_is_refused():
    with pytest.raises(InputError, match="expected one of train, plan"):
        schemas.load("trian")
