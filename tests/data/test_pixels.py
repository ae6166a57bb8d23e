"""Public pixels: decoded once, held-out rows told apart, subjects refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from privshard.core.errors import InputError
from privshard.data.examples import SourceRow
from privshard.data.pixels import cache_pixels


def row(value: int, *, label: str = "a", **more) -> SourceRow:
    sink = io.BytesIO()
    Image.new("RGB", (2, 2), (value, value, value)).save(sink, "PNG")
    return SourceRow(sink.getvalue(), label, source="x.parquet", row=value, **more)


def prepare(image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def cached(folder, rows, *, classes=None, public=False, **more):
    return cache_pixels(
        iter(rows), num_rows=len(rows), folder=folder, prepare=prepare, classes=classes, public=public, **more
    )


def test_pixels_labels_and_splits(tmp_path):
    rows = [row(7, split="train"), row(9, label="b", split="eval"), row(11, label="b", split="train")]
    told = []
    found = cached(tmp_path, rows, on_progress=lambda done, total: told.append((done, total)))
    assert found.images_M3HW.shape == (3, 3, 2, 2)
    assert found.images_M3HW[:, 0, 0, 0].tolist() == [7, 9, 11]
    assert found.labels_M.tolist() == [0, 1, 1]
    assert (found.train_rows.tolist(), found.eval_rows.tolist()) == ([0, 2], [1])
    assert found.classes == ("a", "b")
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_second_call_reads_no_row(tmp_path):
    first = cached(tmp_path, [row(1, split="train")])
    again = cache_pixels(iter(()), num_rows=0, folder=tmp_path, prepare=prepare, classes=None, public=False)
    assert np.array_equal(first.images_M3HW, again.images_M3HW)
    assert again.digest == first.digest


def test_the_digest_is_of_images_and_labels(tmp_path):
    digests = {
        cached(tmp_path / str(place), rows).digest
        for place, rows in enumerate(([row(1)], [row(2)], [row(1, label="b")], [row(1), row(2)]))
        if not np.all([r.split for r in rows])
    }
    assert len(digests) == 4


def test_without_splits_about_a_tenth_is_held_out_by_the_image_alone(tmp_path):
    rows = [row(value) for value in range(200)]
    found = cached(tmp_path / "a", rows)
    assert 5 < len(found.eval_rows) < 40
    backwards = cached(tmp_path / "b", rows[::-1])
    assert {199 - place for place in backwards.eval_rows.tolist()} == set(found.eval_rows.tolist())


def test_rows_with_subjects_are_refused_unless_somebody_vouches(tmp_path):
    rows = [row(1, split="train"), row(2, split="train", subject="ada")]
    with pytest.raises(InputError, match=r"x\.parquet, row 2: names a subject, but .* a base must be public knowledge"):
        cached(tmp_path, rows)
    assert not list(tmp_path.glob("*.npy"))
    assert len(cached(tmp_path, rows, public=True).train_rows) == 2


def test_unknown_labels_and_nothing_to_train_on_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected every label among the 2 classes, got also a"):
        cached(tmp_path / "a", [row(1, split="train")], classes=("b", "c"))
    with pytest.raises(InputError, match="expected rows to train on, got none"):
        cached(tmp_path / "b", [row(1, split="eval")])
    with pytest.raises(InputError, match="expected rows to train on, got none"):
        cached(tmp_path / "c", [])
