"""Streaming rows out of Parquet."""

from __future__ import annotations

import json
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privshard.core.errors import InputError
from privshard.data.reader import count_rows, read_public_classes, read_rows
from privshard.data.schema import Columns


def _class_label(*names: str) -> dict[str, str]:
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def test_hugging_face_layout(write_parquet, png):
    path = write_parquet(
        "people.parquet",
        {
            "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(5)],
            "label": [0, 1, 0, 1, 0],
            "subject": ["ada", "bob", None, "", "ada"],
            "split": ["train", "test", None, "val", ""],
        },
    )
    rows = list(read_rows(path, batch_size=2))
    assert [row.image for row in rows] == [png(i) for i in range(5)]
    assert [row.label for row in rows] == ["0", "1", "0", "1", "0"]
    assert [row.subject for row in rows] == ["ada", "bob", None, None, "ada"]
    assert [row.split for row in rows] == ["train", "eval", None, "eval", None]
    assert [row.where for row in rows] == [f"people.parquet, row {i}" for i in range(5)]


def test_plain_binary_integer_subjects_and_other_names(write_parquet, png):
    path = write_parquet("x.parquet", {"photo": [png(0)], "kind": ["cat"], "who": [7], "more": [1.5]})
    (row,) = read_rows(path, columns=Columns(image="photo", label="kind", subject="who"), required={"subject"})
    assert (row.image, row.label, row.subject, row.split) == (png(0), "cat", "7", None)


def test_subject_zero_is_a_subject(write_parquet, png):
    (row,) = read_rows(write_parquet("x.parquet", {"image": [png(0)], "label": [0], "subject": [0]}))
    assert (row.label, row.subject) == ("0", "0")


def test_folder_is_read_in_order_of_names(write_parquet, png, tmp_path):
    for name, label in (("d/b.parquet", "second"), ("d/sub/a.parquet", "third"), ("d/a.parquet", "first")):
        write_parquet(name, {"image": [png(0)], "label": [label]})
    (tmp_path / "d" / "README.md").write_text("not a table")
    assert [row.label for row in read_rows(tmp_path / "d")] == ["first", "second", "third"]
    assert count_rows(tmp_path / "d") == 3


def test_rows_are_streamed(write_parquet, png, monkeypatch):
    path = write_parquet("x.parquet", {"image": [png(0)] * 100, "label": [1] * 100}, row_group_size=10)
    sizes = []
    iter_batches = pq.ParquetFile.iter_batches

    def watched(self, *args, **kwargs):
        for batch in iter_batches(self, *args, **kwargs):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert len(list(islice(read_rows(path, batch_size=8), 9))) == 9
    assert max(sizes) <= 8
    assert sum(sizes) <= 16


def test_memory_is_bounded_by_batches(write_parquet):
    images = [bytes([i]) * 100_000 for i in range(200)]
    path = write_parquet(
        "x.parquet", {"image": images, "label": [1] * 200}, row_group_size=10, compression="none", use_dictionary=False
    )
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in read_rows(path, batch_size=10))
    assert path.stat().st_size > 2e7 - 1e6
    assert 0 < peak < 5e6


def test_images_beside_the_file_are_read(write_parquet, png, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(3))
    path = write_parquet("x.parquet", {"image": [{"bytes": None, "path": "images/a.png"}], "label": [1]})
    assert next(read_rows(path)).image == png(3)


@pytest.mark.parametrize(
    ("path", "words"),
    [("gone.png", "'gone.png' (No such file"), ("/etc/hostname", "inside the"), ("../secret.png", "inside the")],
)
def test_bad_image_paths_are_refused(write_parquet, path, words, tmp_path, png):
    (tmp_path / "secret.png").write_bytes(png(0))
    file = write_parquet("sub/x.parquet", {"image": [{"bytes": None, "path": path}], "label": [1]})
    with pytest.raises(InputError) as caught:
        next(read_rows(file))
    assert words in str(caught.value)
    assert "x.parquet, row 0, column 'image'" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": [{"bytes": b"x", "path": "p"}, {"bytes": None, "path": None}]}, "row 1, column 'image'"),
        ({"image": [b"x", None]}, "row 1, column 'image'"),
        ({"image": [b"x", b""]}, "row 1, column 'image'"),
        ({"label": ["a", None]}, "row 1, column 'label'"),
        ({"label": ["a", ""]}, "row 1, column 'label'"),
        ({"split": ["train", "holdout"]}, "row 1, column 'split'"),
    ],
)
def test_bad_values_are_named_with_their_row(write_parquet, change, words):
    path = write_parquet("x.parquet", {"image": [b"x", b"y"], "label": ["a", "b"], **change})
    rows = read_rows(path)
    next(rows)
    with pytest.raises(InputError, match=r"x\.parquet") as caught:
        next(rows)
    assert words in str(caught.value)
    assert caught.value.remedy


def test_null_struct_is_no_image(write_parquet):
    image = pa.array([None], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    with pytest.raises(InputError, match="column 'image'"):
        next(read_rows(write_parquet("x.parquet", {"image": image, "label": ["a"]})))


def test_files_that_cannot_be_read_fail_before_the_first_row(tmp_path, write_parquet):
    with pytest.raises(InputError, match="does not exist"):
        read_rows(tmp_path / "gone.parquet")
    with pytest.raises(InputError, match=r"\*.parquet files below"):
        read_rows(tmp_path)
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(InputError, match=r"text.parquet: expected a Parquet file"):
        read_rows(tmp_path / "text.parquet")
    empty = {"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}
    with pytest.raises(InputError, match="at least one row"):
        read_rows(write_parquet("empty.parquet", empty))
    with pytest.raises(InputError, match="'label'"):
        read_rows(write_parquet("unlabelled.parquet", {"image": [b"x"]}))


def test_damaged_rows_are_an_input_error(write_parquet):
    path = write_parquet("x.parquet", {"image": [bytes(5000)], "label": ["a"]}, compression="zstd")
    raw = bytearray(path.read_bytes())
    raw[4:60] = bytes(56)
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"x.parquet: expected readable rows"):
        list(read_rows(path))


def test_files_of_one_folder_must_agree_on_columns(write_parquet, tmp_path):
    write_parquet("d/a.parquet", {"image": [b"x"], "label": ["a"], "subject": ["ada"]})
    write_parquet("d/b.parquet", {"image": [b"y"], "label": ["a"]})
    with pytest.raises(InputError, match="same columns"):
        read_rows(tmp_path / "d")
    assert len(list(read_rows(tmp_path / "d", columns=Columns(subject=None)))) == 2


def test_declared_class_names(write_parquet, tmp_path):
    path = write_parquet("d/a.parquet", {"image": [b"x", b"y"], "label": [1, 0]}, _class_label("cat", "dog"))
    assert read_public_classes(path) == ("cat", "dog")
    assert [row.label for row in read_rows(path)] == ["dog", "cat"]
    write_parquet("d/b.parquet", {"image": [b"x"], "label": [0]}, _class_label("cat", "cow"))
    with pytest.raises(InputError, match="same classes"):
        read_public_classes(tmp_path / "d")


def test_class_index_out_of_range_is_refused(write_parquet):
    path = write_parquet("a.parquet", {"image": [b"x"], "label": [-1]}, _class_label("cat", "dog"))
    with pytest.raises(InputError, match=r"row 0, column 'label': expected a class index from 0 to 1, got -1"):
        next(read_rows(path))


@pytest.mark.parametrize(
    "metadata", [None, {"huggingface": "{"}, {"huggingface": "{}"}, {"huggingface": '{"info": {"features": null}}'}]
)
def test_no_declared_class_names(write_parquet, metadata):
    assert read_public_classes(write_parquet("a.parquet", {"image": [b"x"], "label": [0]}, metadata)) is None


@pytest.mark.parametrize(
    ("name", "num_rows", "has_subject"),
    [("sign_language_digits", 2062, True), ("flowers12", 960, True), ("cifar10", 60000, False)],
)
def test_real_data(real_data, name, num_rows, has_subject):
    path = real_data(name)
    rows = list(islice(read_rows(path), 50))
    assert count_rows(path) == num_rows
    assert {row.split for row in rows} <= {"train", "eval"}
    assert all((row.subject is not None) == has_subject for row in rows)
