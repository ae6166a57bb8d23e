"""Decomposition files: what is read is what was written, and nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_decompositions import VIT, decomposition

from privshard.core.errors import InputError
from privshard.decomposition.files import open_decomposition, write_decomposition
from privshard.decomposition.recompose import write_free


@pytest.fixture
def path(tmp_path):
    write_decomposition(tmp_path / "decomposition.safetensors", decomposition())
    return tmp_path / "decomposition.safetensors"


def test_what_is_read_is_what_was_written(path):
    written = decomposition()
    for place in (path, path.parent):
        with open_decomposition(place, check=True) as found:
            assert found.description() == written.description()
            assert found.architecture == VIT
            assert found.tensors().keys() == written.tensors().keys()
            assert all(np.array_equal(found.tensors()[name], array) for name, array in written.tensors().items())
            assert len(found.digest) == 64
    assert load_file(path).keys() == written.tensors().keys()  # other readers agree


def test_a_changed_bit_is_found_by_the_check(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="its header tells another digest"), open_decomposition(path, check=True):
        pass


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="Expected a whole safetensors file"), open_decomposition(path):
        pass


def test_other_files_and_empty_folders_are_refused(path, tmp_path):
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "plain.safetensors")
    write_free(tmp_path / "model.safetensors", decomposition().first(1, [2]), source="s")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("plain.safetensors", "Expected a decomposition, got a plain file"),
        ("model.safetensors", "Expected a decomposition, got a model"),
        ("empty", "Expected a finished decomposition at .*empty, found none"),
        ("absent.safetensors", "Expected a finished decomposition at .*absent"),
    ):
        with pytest.raises(InputError, match=message), open_decomposition(tmp_path / name):
            pass
