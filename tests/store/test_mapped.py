"""Mapped tensor files: whole or absent, as other readers see them."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from privshard.core.errors import InputError, ResourceError
from privshard.store.mapped import map_tensors, new_file

SHAPES = {"b": (3, 5), "a": (7,), "scalar": (), "none": (0, 4)}


def write(path, *, digest="0000"):
    with new_file(path, SHAPES, {"digest": "----", "kept": "ü"}) as new:
        for place, (_, array) in enumerate(sorted(new.arrays.items())):
            array[...] = place + np.arange(array.size, dtype=np.float32).reshape(array.shape)
        new.metadata["digest"] = digest


def test_other_readers_see_what_was_written(tmp_path):
    write(tmp_path / "x" / "f.safetensors")
    found = load_file(tmp_path / "x" / "f.safetensors")
    assert {name: array.shape for name, array in found.items()} == SHAPES
    assert found["a"].tolist() == list(range(7))
    assert found["b"][0].tolist() == [1, 2, 3, 4, 5]
    with safe_open(tmp_path / "x" / "f.safetensors", framework="numpy") as file:
        assert file.metadata() == {"digest": "0000", "kept": "ü"}
    mapped = map_tensors(tmp_path / "x" / "f.safetensors")
    assert all(np.array_equal(mapped[name], array) for name, array in found.items())
    assert not mapped["a"].flags.writeable


def test_files_of_others_are_mapped(tmp_path):
    arrays = {"x": np.arange(3, dtype=np.float64), "y": np.arange(5, dtype=np.uint8), "z": np.float32([1.5])}
    save_file(arrays, tmp_path / "f.safetensors")
    found = map_tensors(tmp_path / "f.safetensors")
    assert all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in arrays.items()
    )


def test_an_error_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "f.safetensors"
    write(path)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), new_file(path, SHAPES, {}) as new:
        new.arrays["a"][0] = 1 / 0
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_missing_resource(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError), new_file(tmp_path / "file" / "f.safetensors", SHAPES, {}):
        pass


@pytest.mark.parametrize("cut", [4, 60, -1])
def test_damaged_files_are_refused(tmp_path, cut):
    path = tmp_path / "f.safetensors"
    write(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="Expected a whole safetensors file"):
        map_tensors(path)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="Expected a safetensors file at"):
        map_tensors(tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="Expected a safetensors file at"):
        map_tensors(tmp_path / "empty")
