"""Averages on disk: exact laws, a rational-arithmetic oracle, and files that do not belong together."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from oracles import exact_weighted_sum
from safetensors.numpy import save_file

from privshard.composition.average import average
from privshard.core.errors import InputError, VerificationError
from privshard.core.model import Composition

SHAPES = {"head.bias": (3,), "head.weight": (3, 4), "scale": ()}
KIND = {"base": "b", "space": "tangent"}


def _write(
    folder: Path, name: str, *, seed: int = 0, shapes=SHAPES, base: str = "b", space: str = "tangent", dtype=np.float32
) -> Path:
    rng = np.random.default_rng(seed)
    tensors = {key: np.asarray(rng.standard_normal(shape), dtype=dtype) for key, shape in shapes.items()}
    path = folder / f"{name}.safetensors"
    save_file(tensors, str(path), metadata={"base": base, "space": space})
    return path


def _tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: np.asarray(rng.standard_normal(shape), dtype=np.float32) for key, shape in SHAPES.items()}


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    return {name: _write(tmp_path, name, seed=seed) for seed, name in enumerate("abcd")}


def _bits(tensors: dict[str, np.ndarray]) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in tensors.items()}


def test_average_is_the_rational_sum_rounded_once(paths):
    weights = {"a": 0.1, "b": 0.7, "c": -2.5, "d": 1 / 3}
    found = average(paths, weights)
    for name in SHAPES:
        expected = exact_weighted_sum({item: _tensors(seed)[name] for seed, item in enumerate("abcd")}, weights)
        assert found[name].dtype == np.float32
        np.testing.assert_array_max_ulp(found[name], expected.astype(np.float32), maxulp=1)


def test_sums_are_taken_in_double_precision(tmp_path):
    files = {}
    for name, number in {"a": 1e8, "b": 1.0, "c": -1e8}.items():
        files[name] = tmp_path / name
        save_file({"x": np.array([number], dtype=np.float32)}, str(files[name]), metadata=KIND)
    assert average(files, dict.fromkeys(files, 1.0))["x"].tolist() == [1.0]


def test_one_component_with_weight_one_comes_back_bit_for_bit(tmp_path):
    special = np.array([0.0, -0.0, 1e-45, -1e-45, 3.4e38, np.pi], dtype=np.float32)
    path = tmp_path / "a.safetensors"
    save_file({"x": special}, str(path), metadata=KIND)
    assert average({"a": path}, {"a": 1.0})["x"].tobytes() == special.tobytes()


def test_order_of_mappings_leaves_no_trace(paths):
    weights = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    backwards = average(dict(reversed(paths.items())), dict(reversed(weights.items())))
    assert _bits(backwards) == _bits(average(paths, weights))


def test_dropped_component_leaves_no_trace(paths):
    full = Composition.uniform("b", list(paths))
    kept = full.without({"b"})
    others = {name: path for name, path in paths.items() if name != "b"}
    assert _bits(average(paths, kept.weights)) == _bits(average(others, Composition.uniform("b", list(others)).weights))


def test_nothing_averages_to_no_tensors(paths):
    assert average(paths, {}) == {}


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"base": "other"}, "base: b against other"),
        ({"space": "weight"}, "space: tangent against weight"),
        ({"shapes": {**SHAPES, "head.bias": (4,)}}, r"head.bias: \(3,\) against \(4,\)"),
        ({"shapes": {"head.bias": (3,), "scale": ()}}, r"head.weight: \(3, 4\) against absent"),
    ],
)
def test_components_of_different_kinds_are_refused_with_both_sides(tmp_path, change, shown):
    files = {"a": _write(tmp_path, "a"), "b": _write(tmp_path, "b", **change)}
    with pytest.raises(InputError, match=f"Components a and b are of different kinds: {shown}"):
        average(files, {"a": 0.5, "b": 0.5})


def test_only_fp32_is_accepted(tmp_path):
    with pytest.raises(InputError, match=r"Component a, tensor head.bias: expected F32, got F64"):
        average({"a": _write(tmp_path, "a", dtype=np.float64)}, {"a": 1.0})


def test_component_that_names_no_base_and_space_is_refused(tmp_path):
    path = tmp_path / "a"
    save_file({"x": np.ones(1, dtype=np.float32)}, str(path), metadata={"base": "b"})
    with pytest.raises(InputError, match=r"Component a: expected metadata .* got \['base'\]"):
        average({"a": path}, {"a": 1.0})


def test_weighted_component_without_file_is_refused(paths):
    with pytest.raises(InputError, match=r"\['z'\] have none, there are \['a', 'b', 'c', 'd'\]"):
        average(paths, {"a": 1.0, "z": 1.0})


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_must_be_finite(paths, weight):
    with pytest.raises(InputError, match="Component a: expected a finite weight"):
        average(paths, {"a": weight})


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(VerificationError, match=r"Expected a whole safetensors file at .*none"):
        average({"a": tmp_path / "none"}, {"a": 1.0})
    broken = tmp_path / "broken"
    broken.write_bytes(b"not safetensors at all")
    with pytest.raises(VerificationError, match=r"Expected a whole safetensors file at .*broken"):
        average({"a": broken}, {"a": 1.0})


def test_memory_does_not_grow_with_the_number_of_components(tmp_path):
    shapes = {f"t{index}": (256, 256) for index in range(8)}
    files = {f"c{seed}": _write(tmp_path, f"c{seed}", seed=seed, shapes=shapes) for seed in range(12)}
    tensor_bytes, result_bytes = 256 * 256 * 4, 8 * 256 * 256 * 4
    average(files, dict.fromkeys(files, 1 / 12))
    tracemalloc.start()
    average(files, dict.fromkeys(files, 1 / 12))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < result_bytes + 8 * tensor_bytes


def test_arithmetic_on_files_and_logits_starts_without_torch():
    code = (
        "import sys, privshard.composition.average, privshard.composition.logits, privshard.composition.metrics;"
        "import privshard.influence.report, privshard.influence.geometry, privshard.report.html;"
        "print([m for m in ('torch', 'timm', 'opacus', 'ray', 'matplotlib', 'sklearn', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
