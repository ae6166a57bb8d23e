"""Columns, types and split values."""

from __future__ import annotations

import pyarrow as pa
import pytest

from privshard.core.errors import InputError
from privshard.data.schema import Columns, check_schema, parse_split

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _check(required: frozenset[str] = frozenset(), columns: Columns | None = None, **fields: pa.DataType):
    return check_schema(pa.schema(fields), columns=columns or Columns(), required=required, file="f.parquet")


@pytest.mark.parametrize("image", [IMAGE, pa.struct([("bytes", pa.large_binary())]), pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("label", [pa.int64(), pa.uint8(), pa.string(), pa.large_string()])
def test_usable_types_are_taken(image, label):
    assert _check(image=image, label=label) == {"image", "label"}


def test_dictionary_encoded_text_is_text():
    words = pa.dictionary(pa.int32(), pa.string())
    assert _check(image=IMAGE, label=words, subject=words, split=words) == {"image", "label", "subject", "split"}


def test_all_null_subject_is_allowed():
    assert "subject" in _check(image=IMAGE, label=pa.string(), subject=pa.null())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"label": pa.string()}, ["'image'", "['label']", "data.image"]),
        ({"image": IMAGE}, ["'label'", "data.label"]),
        ({"image": pa.string(), "label": pa.string()}, ["'image'", "binary or struct", "string"]),
        ({"image": pa.struct([("path", pa.string())]), "label": pa.string()}, ["'image'", "struct<path"]),
        ({"image": IMAGE, "label": pa.float64()}, ["'label'", "integer or string", "double"]),
        ({"image": IMAGE, "label": pa.bool_()}, ["'label'", "bool"]),
        ({"image": IMAGE, "label": pa.string(), "subject": pa.float32()}, ["'subject'", "float"]),
        ({"image": IMAGE, "label": pa.string(), "split": pa.int8()}, ["'split'", "string", "int8"]),
    ],
)
def test_missing_and_mistyped_columns_are_named(fields, words):
    with pytest.raises(InputError) as caught:
        _check(**fields)
    for word in ["f.parquet", *words]:
        assert word in str(caught.value)


def test_twice_named_column_is_refused():
    schema = pa.schema([("image", IMAGE), ("label", pa.string()), ("label", pa.string())])
    with pytest.raises(InputError, match="one column 'label', got 2"):
        check_schema(schema, columns=Columns(), required=frozenset(), file="f.parquet")


def test_optional_columns_are_required_on_request():
    columns = Columns(subject="person")
    assert _check(columns=columns, image=IMAGE, label=pa.string()) == {"image", "label"}
    with pytest.raises(InputError, match=r"'person' for the subject.*data\.subject"):
        _check(frozenset({"subject"}), columns, image=IMAGE, label=pa.string())


def test_columns_set_to_none_are_not_read():
    fields = {"image": IMAGE, "label": pa.string(), "subject": pa.float64()}
    assert _check(columns=Columns(subject=None), **fields) == {"image", "label"}


@pytest.mark.parametrize("names", [{"image": ""}, {"subject": "label"}])
def test_column_names_must_differ(names):
    with pytest.raises(InputError, match="non-empty column names"):
        Columns(**names)


def test_split_values():
    for value in ("test", "val", "valid", "validation", "eval", "dev", " Test "):
        assert parse_split(value, where="w") == "eval"
    assert parse_split("train", where="w") == "train"
    assert parse_split(None, where="w") is None
    assert parse_split("", where="w") is None
    with pytest.raises(InputError, match=r"w: expected a split of .*'holdout'"):
        parse_split("holdout", where="w")
