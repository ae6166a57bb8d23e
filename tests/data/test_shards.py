"""The private copy's partitions."""

from __future__ import annotations

import io

import pyarrow.parquet as pq
import pytest

from privshard.core.errors import InputError, VerificationError
from privshard.data.shards import (
    ShardRows,
    encode_partition,
    find_subject,
    part_path,
    read_partition,
    rewrite_without,
    scan_for_subjects,
    shard_directory,
    write_partition,
)

HOME = shard_directory(1)


def _rows(*subjects: str) -> ShardRows:
    """A row for each subject, in order."""
    numbers = range(len(subjects))
    return ShardRows(
        ids=tuple(f"{i:04d}" for i in numbers),
        images=tuple(bytes([i % 256]) * 3 for i in numbers),
        labels=tuple("ab"[i % 2] for i in numbers),
        subjects=subjects,
    )


def test_directories_sort_as_shards_do():
    assert [shard_directory(shard) for shard in (0, 7, 123, 1234)] == [
        "data/shard=000",
        "data/shard=007",
        "data/shard=123",
        "data/shard=1234",
    ]


@pytest.mark.parametrize("count", [0, 1, 256, 600])
def test_a_partition_comes_back_as_written(objects, count):
    rows = _rows(*(f"s{i % 5}" for i in range(count)))
    write_partition(objects, HOME, rows=rows)
    assert read_partition(objects, HOME) == rows
    assert len(rows) == count
    assert rows.num_subjects == min(count, 5)


def test_columns_of_the_private_copy():
    for rows in (_rows(), _rows("ada")):
        schema = pq.read_schema(io.BytesIO(encode_partition(rows)))
        assert {field.name: str(field.type) for field in schema} == {
            "id": "string",
            "image": "binary",
            "label": "string",
            "subject": "string",
        }


def test_rows_must_be_in_canonical_order():
    for ids in (("b", "a"), ("a", "a")):
        with pytest.raises(InputError, match="ascending"):
            ShardRows(ids, (b"", b""), ("x", "x"), ("s", "s"))
    with pytest.raises(InputError, match="one length"):
        ShardRows(("a",), (), (), ())


@pytest.mark.parametrize("gone", ["first", "middle", "last", "nobody"])
def test_without_is_a_filter(gone):
    rows = _rows("first", "first", "other", "middle", "other", "last")
    kept = rows.without(gone)
    table = list(zip(rows.ids, rows.images, rows.labels, rows.subjects, strict=True))
    expected = [row for row in table if row[3] != gone]
    assert list(zip(kept.ids, kept.images, kept.labels, kept.subjects, strict=True)) == expected


@pytest.mark.parametrize("gone", ["first", "middle", "last"])
def test_rewriting_equals_never_having_had_the_rows(objects, gone):
    rows = _rows("first", "other", "middle", "other", "middle", "last")
    write_partition(objects, HOME, rows=rows)
    assert find_subject(objects, HOME, subject=gone) == rows.subjects.count(gone)
    assert rewrite_without(objects, HOME, subject=gone) == rows.subjects.count(gone)
    assert objects.read(part_path(HOME)) == encode_partition(rows.without(gone))
    assert find_subject(objects, HOME, subject=gone) == 0


def test_rewriting_again_writes_nothing(objects, monkeypatch):
    write_partition(objects, HOME, rows=_rows("ada", "bob"))
    assert rewrite_without(objects, HOME, subject="ada") == 1
    monkeypatch.delattr(type(objects), "write")
    assert rewrite_without(objects, HOME, subject="ada") == 0
    assert read_partition(objects, HOME).subjects == ("bob",)


def test_the_last_subject_leaves_an_empty_file(objects):
    write_partition(objects, HOME, rows=_rows("ada", "ada"))
    assert rewrite_without(objects, HOME, subject="ada") == 2
    assert objects.read(part_path(HOME)) == encode_partition(ShardRows())
    assert len(read_partition(objects, HOME)) == 0


def test_subjects_match_whole(objects):
    write_partition(objects, HOME, rows=_rows("ada", "ada ", "Ada", "ad"))
    assert rewrite_without(objects, HOME, subject="ada") == 1
    assert read_partition(objects, HOME).subjects == ("ada ", "Ada", "ad")


def test_scan_finds_subjects_wherever_they_lie(objects):
    write_partition(objects, shard_directory(0), rows=_rows("bob", "bob"))
    write_partition(objects, HOME, rows=_rows("ada", "bob", "ada"))
    write_partition(objects, "data/eval", rows=_rows("ada"))
    objects.write("data/shard=001/stray-copy.parquet", encode_partition(_rows("ada")))
    assert scan_for_subjects(objects, matches=lambda subject: subject == "ada") == {
        "data/eval/part-0.parquet": 1,
        "data/shard=001/part-0.parquet": 2,
        "data/shard=001/stray-copy.parquet": 1,
    }
    assert scan_for_subjects(objects, matches=lambda subject: subject == "eve") == {}


def test_damage_is_found(objects):
    with pytest.raises(VerificationError, match=part_path(HOME)):
        read_partition(objects, HOME)
    objects.write(part_path(HOME), encode_partition(_rows("ada"))[:-9])
    with pytest.raises(VerificationError, match="damaged"):
        find_subject(objects, HOME, subject="ada")
    sink = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(encode_partition(_rows("ada")))).drop_columns("label"), sink)
    objects.write(part_path(HOME), sink.getvalue())
    with pytest.raises(VerificationError, match="expected the columns"):
        read_partition(objects, HOME)


def test_unsorted_rows_are_damage(objects):
    table = pq.read_table(io.BytesIO(encode_partition(_rows("ada", "bob"))))
    sink = io.BytesIO()
    pq.write_table(table.take([1, 0]), sink)
    objects.write(part_path(HOME), sink.getvalue())
    with pytest.raises(VerificationError, match="ascending"):
        read_partition(objects, HOME)
