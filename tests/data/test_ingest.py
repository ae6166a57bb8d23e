"""Making the private copy."""

from __future__ import annotations

import dataclasses
import io
import random
from itertools import islice

import pyarrow.parquet as pq
import pytest

from privshard.core.errors import InputError, ResourceError
from privshard.core.partition import Partition
from privshard.data.example import EXAMPLE_CLASSES, example_rows
from privshard.data.examples import SourceRow, example_id, subject_of_image
from privshard.data.ingest import ingest
from privshard.data.reader import read_rows
from privshard.data.shards import EVAL_DIRECTORY, part_path, read_partition, rewrite_without, shard_directory
from privshard.store.objects import ObjectStore

KEY = bytes(range(32))
PARTITION = Partition(key=bytes(reversed(range(32))), num_shards=4)
CLASSES = ("a", "b", "c")


def _ingest(rows, objects, **options):
    settings = {"partition": PARTITION, "hashing_key": KEY, "classes": CLASSES, **options}
    return ingest(rows, objects=objects, **settings)


def _contents(objects: ObjectStore) -> dict[str, bytes]:
    return {path: objects.read(path) for path in objects.list("data")}


def _oracle(rows: list[SourceRow], num_shards: int = 4) -> dict[str, list[dict]]:
    """The private copy by a dictionary and a sort."""
    kept: dict[str, dict[str, dict]] = {"data/eval/part-0.parquet": {}}
    kept.update({f"data/shard={shard:03d}/part-0.parquet": {} for shard in range(num_shards)})
    for row in rows:
        subject = row.subject or subject_of_image(row.image)
        identity = example_id(KEY, image=row.image, label=row.label, subject=subject)
        held_out = PARTITION.held_out(subject) if row.split is None else row.split == "eval"
        path = "data/eval" if held_out else f"data/shard={PARTITION.shard_of(subject):03d}"
        value = {"id": identity, "image": row.image, "label": row.label, "subject": subject}
        kept[f"{path}/part-0.parquet"][identity] = value
    for path in kept:
        if path != "data/eval/part-0.parquet":
            kept[path] = {id: row for id, row in kept[path].items() if id not in kept["data/eval/part-0.parquet"]}
    return {path: [rows[id] for id in sorted(rows)] for path, rows in kept.items()}


def _tables(objects: ObjectStore) -> dict[str, list[dict]]:
    return {path: pq.read_table(io.BytesIO(raw)).to_pylist() for path, raw in _contents(objects).items()}


@pytest.mark.parametrize("num_workers", [0, 4])
def test_private_copy_equals_the_oracle(people, objects, num_workers):
    report = _ingest(people, objects, num_workers=num_workers)
    expected = _oracle(people)
    assert _tables(objects) == expected
    assert report.num_train_rows + report.num_eval_rows == len(people)
    assert report.shard_counts == tuple(len(expected[part_path(shard_directory(shard))]) for shard in range(4))
    assert report.num_eval_rows == len(expected[part_path(EVAL_DIRECTORY)]) > 0
    assert sum(report.shard_subject_counts) == report.num_subjects < 20
    assert report.num_duplicates == report.num_suppressed == 0


def test_order_of_the_source_does_not_matter(people, tmp_path):
    one, other = ObjectStore(tmp_path / "one"), ObjectStore(tmp_path / "other")
    _ingest(people, one)
    shuffled = people.copy()
    random.Random(0).shuffle(shuffled)
    _ingest(shuffled, other)
    assert _contents(one) == _contents(other)


def test_empty_shards_are_written(png, objects):
    report = _ingest([SourceRow(png(0), "a", "ada", "train")], objects)
    assert objects.list("data") == [
        "data/eval/part-0.parquet",
        *(f"data/shard={shard:03d}/part-0.parquet" for shard in range(4)),
    ]
    assert sorted(report.shard_counts) == [0, 0, 0, 1]
    assert len(read_partition(objects, EVAL_DIRECTORY)) == 0


def test_forgetting_equals_never_having_ingested(people, tmp_path):
    """For every person: first, middle, last of a shard, held out, and one after the other until nobody is left."""
    objects = ObjectStore(tmp_path / "all")
    _ingest(people, objects)
    left = people
    for person in sorted({row.subject for row in people}):
        left = [row for row in left if row.subject != person]
        for directory in [EVAL_DIRECTORY, *(shard_directory(shard) for shard in range(4))]:
            rewrite_without(objects, directory, subject=person)
        never = ObjectStore(tmp_path / f"without-{person}")
        _ingest(left, never)
        assert _contents(objects) == _contents(never)
    assert not any(_tables(objects).values())


def test_given_splits_are_kept(people, objects):
    split = [dataclasses.replace(row, split="eval" if row.row % 2 else "train") for row in people]
    report = _ingest(split, objects)
    assert report.num_eval_rows == len(people) // 2
    assert _tables(objects) == _oracle(split)


def test_rows_without_a_subject_are_their_own(png, objects):
    rows = [SourceRow(png(0), "a", None, "train"), SourceRow(png(1), "a", None, "train")]
    report = _ingest(rows, objects)
    assert report.num_subjects == 2
    stored = {row["subject"] for table in _tables(objects).values() for row in table}
    assert stored == {subject_of_image(png(0)), subject_of_image(png(1))}


def test_identical_rows_of_one_subject_count_once(png, objects):
    rows = [
        SourceRow(png(0), "a", "ada", "train"),
        SourceRow(png(0), "a", "ada", "train"),
        SourceRow(png(0), "b", "ada", "train"),
        SourceRow(png(0), "a", "bob", "train"),
    ]
    report = _ingest(rows, objects)
    assert (report.num_train_rows, report.num_duplicates) == (3, 1)


@pytest.mark.parametrize("splits", [("train", "eval"), ("eval", "train")])
def test_a_row_on_both_sides_stays_held_out(png, objects, splits):
    report = _ingest([SourceRow(png(0), "a", "ada", split) for split in splits], objects)
    assert (report.num_train_rows, report.num_eval_rows, report.num_duplicates) == (0, 1, 1)


def test_suppressed_subjects_are_left_out_unchecked(people, png, tmp_path):
    gone = {"person-03", subject_of_image(b"damaged")}
    report = _ingest(
        [*people, SourceRow(b"damaged", "no class")],
        ObjectStore(tmp_path / "one"),
        is_suppressed=lambda subject: subject in gone,
    )
    assert report.num_suppressed == 4 + 1
    _ingest([row for row in people if row.subject != "person-03"], ObjectStore(tmp_path / "other"))
    assert _contents(ObjectStore(tmp_path / "one")) == _contents(ObjectStore(tmp_path / "other"))


def _bad_rows(people: list[SourceRow], **change: object) -> list[SourceRow]:
    return [*people[:5], dataclasses.replace(people[5], **change), *people[6:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": b"damaged"}, r"people.parquet, row 5: Expected an image"),
        ({"label": "d"}, r"people.parquet, row 5: expected a label of the 3 classes 'a', 'b', 'c'; got 'd'"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 4])
def test_bad_rows_are_named_and_nothing_is_written(people, objects, tmp_path, change, words, num_workers):
    spill = tmp_path / "spill"
    with pytest.raises(InputError, match=words):
        _ingest(_bad_rows(people, **change), objects, num_workers=num_workers, spill_folder=spill)
    assert objects.list() == []
    assert list(spill.iterdir()) == []


def test_errors_do_not_name_the_person(people, objects):
    with pytest.raises(InputError) as caught:
        _ingest(_bad_rows(people, image=b"damaged"), objects)
    assert "person-" not in str(caught.value)


class _FullDisk(ObjectStore):
    """Fails at the third write."""

    def __init__(self, root) -> None:
        super().__init__(root)
        self.left = 2

    def write(self, path: str, data: bytes) -> None:
        if self.left == 0:
            raise ResourceError("disk full")
        self.left -= 1
        super().write(path, data)


def test_a_failing_store_leaves_nothing(people, tmp_path):
    objects = _FullDisk(tmp_path / "workspace")
    objects.delete_tree("data")
    with pytest.raises(ResourceError, match="disk full"):
        _ingest(people, objects)
    assert objects.list() == []


def test_what_an_interrupted_ingest_left_is_replaced(people, objects):
    objects.write("data/shard=017/part-0.parquet", b"left behind")
    _ingest(people, objects)
    assert set(_tables(objects)) == set(_oracle(people))


@pytest.mark.parametrize("classes", [(), ("a", "a")])
def test_classes_are_checked(people, objects, classes):
    with pytest.raises(InputError, match=r"data\.classes"):
        _ingest(people, objects, classes=classes)


def test_an_empty_key_is_refused(people, objects):
    with pytest.raises(InputError, match="hashing key"):
        _ingest(people, objects, hashing_key=b"")


def test_progress_counts_rows(people, objects):
    seen = []
    _ingest(people, objects, on_progress=seen.append)
    assert seen == list(range(1, len(people) + 1))


def test_embedded_example(objects):
    report = _ingest(example_rows(), objects, classes=EXAMPLE_CLASSES)
    assert report.num_train_rows + report.num_eval_rows == 1797
    assert 140 <= report.num_subjects <= 178
    assert report.num_duplicates == 0


@pytest.mark.parametrize(("name", "count"), [("sign_language_digits", 300), ("flowers12", 60), ("cifar10", 300)])
def test_real_data(real_data, objects, name, count):
    rows = list(islice(read_rows(real_data(name)), count))
    report = _ingest(rows, objects, classes=tuple(sorted({row.label for row in rows})))
    assert _tables(objects) == _oracle(rows)
    assert report.num_train_rows + report.num_eval_rows + report.num_duplicates == count
