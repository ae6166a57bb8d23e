"""Ids and subjects of examples."""

from __future__ import annotations

import hashlib

import pytest

from privshard.data.examples import SourceRow, example_id, subject_of_image

KEY = bytes(range(32))
ROW = {"image": b"pixels", "label": "cat", "subject": "ada"}


def test_equal_rows_have_equal_ids():
    assert example_id(KEY, **ROW) == example_id(KEY, **ROW)
    assert len(example_id(KEY, **ROW)) == 64


@pytest.mark.parametrize("change", [{"image": b"pixel"}, {"label": "dog"}, {"subject": "bob"}])
def test_every_part_of_a_row_enters_its_id(change):
    assert example_id(KEY, **{**ROW, **change}) != example_id(KEY, **ROW)


def test_parts_do_not_run_into_each_other():
    left = example_id(KEY, image=b"x", label="ab", subject="c")
    assert left != example_id(KEY, image=b"x", label="a", subject="bc")


def test_ids_need_the_key():
    assert example_id(bytes(32), **ROW) != example_id(KEY, **ROW)


def test_owner_of_an_image_can_name_its_subject():
    assert subject_of_image(b"pixels") == "image:" + hashlib.sha256(b"pixels").hexdigest()


def test_rows_do_not_show_personal_data():
    assert repr(SourceRow(b"pixels", "cat", "ada", None, "f.parquet", 3)) == (
        "SourceRow(label='cat', split=None, source='f.parquet', row=3)"
    )
