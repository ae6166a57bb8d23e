"""Tensor files keep bits, names and metadata, and refuse what is not theirs."""

from __future__ import annotations

import numpy as np
import pytest

from privshard.core.errors import VerificationError
from privshard.store.objects import ObjectStore
from privshard.store.tensors import load_tensors, open_lazy, save_tensors


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    odd = np.array([np.nan, -0.0, np.inf, 1e-45], dtype=np.float32)
    grid = rng.normal(size=(3, 4)).astype(np.float32)
    return {
        "odd": odd,
        "turned": grid.T,
        "strided": grid[:, ::2],
        "scalar": np.float32(3).reshape(()),
        "empty": grid[:0],
    }


@pytest.fixture
def store(tmp_path):
    return ObjectStore(tmp_path)


def _same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def test_round_trip_is_bit_exact(store, arrays):
    save_tensors(store, "c/x.safetensors", arrays, {"space": "tangent", "base": "b"})
    loaded, metadata = load_tensors(store, "c/x.safetensors")
    assert metadata == {"space": "tangent", "base": "b"}
    assert loaded.keys() == arrays.keys()
    assert all(_same(loaded[name], arrays[name]) for name in arrays)


def test_works_below_a_uri_and_without_metadata(arrays):
    store = ObjectStore("mock:///bucket")
    save_tensors(store, "x.safetensors", arrays)
    loaded, metadata = load_tensors(store, "x.safetensors")
    assert metadata == {}
    assert _same(loaded["turned"], arrays["turned"])


def test_lazy_reads_one_tensor(store, arrays):
    save_tensors(store, "x.safetensors", arrays, {"space": "weight"})
    with open_lazy(store.local_path("x.safetensors")) as handle:
        assert set(handle.keys()) == set(arrays)
        assert handle.metadata() == {"space": "weight"}
        assert _same(handle.get_tensor("turned"), arrays["turned"])


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_truncated_file_is_named(store, arrays, keep):
    save_tensors(store, "x.safetensors", arrays)
    store.write("x.safetensors", store.read("x.safetensors")[:keep])
    with pytest.raises(VerificationError, match=r"x\.safetensors"):
        load_tensors(store, "x.safetensors")
    with pytest.raises(VerificationError, match=r"x\.safetensors"), open_lazy(store.local_path("x.safetensors")):
        pytest.fail("opened")


@pytest.mark.parametrize("data", [b"PK\3\4 a zip", b"\x02\0\0\0\0\0\0\0[]", b"\x04\0\0\0\0\0\0\0null", bytes(100)])
def test_foreign_file_is_named(store, data):
    store.write("x.safetensors", data)
    with pytest.raises(VerificationError, match=r"x\.safetensors"):
        load_tensors(store, "x.safetensors")


def test_missing_file_is_named(store):
    with pytest.raises(VerificationError, match=r"x\.safetensors"):
        load_tensors(store, "x.safetensors")
    with pytest.raises(VerificationError, match=r"x\.safetensors"), open_lazy(store.local_path("x.safetensors")):
        pytest.fail("opened")
