"""Weight distances and conflict, against whole vectors in memory."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from privshard.core.errors import InputError
from privshard.influence import geometry as module
from privshard.influence.geometry import component_geometry

SHAPES = {"head.bias": (3,), "head.weight": (50, 4), "scale": (), "none": (0, 2)}


def _write(folder, tensors_of):
    paths = {}
    for name, tensors in tensors_of.items():
        paths[name] = folder / name
        arrays = {key: np.asarray(value, dtype=np.float32) for key, value in tensors.items()}
        save_file(arrays, str(paths[name]), metadata={"base": "b", "space": "tangent"})
    return paths


def _random(count):
    rng = np.random.default_rng(0)
    return {f"c{index}": {key: rng.standard_normal(shape) for key, shape in SHAPES.items()} for index in range(count)}


def _vector(tensors):
    return np.concatenate([np.asarray(tensors[key], dtype=np.float32).reshape(-1) for key in SHAPES]).astype(np.float64)


@pytest.mark.parametrize("slice_elements", [1, 100, 2**22])
def test_agrees_with_whole_vectors(tmp_path, monkeypatch, slice_elements):
    monkeypatch.setattr(module, "SLICE_ELEMENTS", slice_elements)
    tensors = _random(5)
    found = component_geometry(_write(tmp_path, tensors))
    x_SN = np.stack([_vector(tensors[name]) for name in sorted(tensors)])
    np.testing.assert_allclose(found.gram_SS, x_SN @ x_SN.T, rtol=1e-12, atol=1e-12)
    for index in range(5):
        others = np.delete(x_SN, index, axis=0).mean(axis=0)
        assert found.distance_S[index] == pytest.approx(np.linalg.norm(x_SN[index] - others), rel=1e-12)
    norm_S = np.linalg.norm(x_SN, axis=1)
    np.testing.assert_allclose(found.cosines(), x_SN @ x_SN.T / np.outer(norm_S, norm_S), rtol=1e-12, atol=1e-12)


def test_equal_components_are_at_distance_zero_exactly(tmp_path):
    same = _random(1)["c0"]
    found = component_geometry(_write(tmp_path, {name: same for name in "abcdefg"}))
    assert found.distance_S.tolist() == [0.0] * 7


def test_opposites_conflict_and_the_diagonal_is_one(tmp_path):
    one = _random(1)["c0"]
    found = component_geometry(_write(tmp_path, {"a": one, "b": {key: -value for key, value in one.items()}}))
    assert found.cosines() == [[1.0, -1.0], [-1.0, 1.0]]


def test_a_zero_component_has_no_direction(tmp_path):
    one = _random(1)["c0"]
    found = component_geometry(_write(tmp_path, {"a": one, "b": {key: 0 * value for key, value in one.items()}}))
    assert found.cosines() == [[1.0, None], [None, None]]
    assert found.distance_S[0] == pytest.approx(np.linalg.norm(_vector(one)))


def test_a_single_component_is_measured_from_the_base(tmp_path):
    tensors = _random(1)
    found = component_geometry(_write(tmp_path, tensors))
    assert found.distance_S[0] == pytest.approx(np.linalg.norm(_vector(tensors["c0"])))
    assert found.cosines() == [[1.0]]


def test_no_components_have_no_geometry():
    found = component_geometry({})
    assert (found.ids, found.cosines(), found.distance_S.tolist()) == ((), [], [])


def test_components_that_diverged_are_named(tmp_path):
    tensors = _random(2)
    tensors["c1"]["scale"] = np.nan
    with pytest.raises(InputError, match=r"Components \['c1'\] hold NaN or infinity"):
        component_geometry(_write(tmp_path, tensors))


def test_components_of_different_kinds_are_refused(tmp_path):
    tensors = _random(2)
    del tensors["c1"]["scale"]
    with pytest.raises(InputError, match=r"scale: \(\) against absent"):
        component_geometry(_write(tmp_path, tensors))
