"""Composition by curvature on disk: against a dense solve in double precision, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from privshard.composition.curvature import Held, by_curvature, curved_average
from privshard.core.errors import InputError, VerificationError

SHAPES = {"head.weight": (3, 4), "head.bias": (3,), "block.weight": (5, 2)}
SIZE = 12 + 3 + 10


def make(seed: int, *, rows: int = 3, center: bool = True) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A component and its curvature; zeros without rows."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    around = {f"factor/{name}": rng.standard_normal((3, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    around |= {f"ridge/{name}": np.array(rng.uniform(0.1, 1.0)) for name in SHAPES}
    around |= {"center": rng.standard_normal(4)} if center else {}
    return arrays, {name: np.asarray(array * bool(rows)) for name, array in around.items()}


def matrix(around: dict[str, np.ndarray]) -> np.ndarray:
    """A curvature as a dense matrix over (head.weight, head.bias, block.weight)."""
    factor = np.concatenate([around[f"factor/{name}"].reshape(3, -1) for name in SHAPES], axis=1).astype(np.float64)
    out = factor.T @ factor
    out[:12, :12] += float(around["ridge/head.weight"]) * np.eye(12)
    out[15:, 15:] += float(around["ridge/block.weight"]) * np.eye(10)
    for row in range(3):
        tied = np.zeros(SIZE)
        tied[4 * row : 4 * row + 4] = around.get("center", np.zeros(4))
        tied[12 + row] = 1.0
        out += float(around["ridge/head.bias"]) * np.outer(tied, tied)
    return out


def dense(pairs, weights) -> dict[str, np.ndarray]:
    """The formula, as it is written."""
    flat = [np.concatenate([arrays[name].ravel() for name in SHAPES]).astype(np.float64) for arrays, _ in pairs]
    total = sum(w * matrix(around) for w, (_, around) in zip(weights, pairs, strict=True))
    right = sum(w * matrix(around) @ d for w, (_, around), d in zip(weights, pairs, flat, strict=True))
    parts = np.split(np.linalg.solve(total, right), [12, 15])
    return {name: part.reshape(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def write(folder, pairs):
    files, curvatures = {}, {}
    for number, (arrays, around) in enumerate(pairs):
        name = f"c{number}"
        files[name], curvatures[name] = folder / f"{name}.safetensors", folder / f"{name}.curvature"
        save_file(arrays, files[name], metadata={"base": "b", "space": "tangent"})
        save_file(around, curvatures[name])
    return files, curvatures


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.5, 2.0, 0.1)])
def test_it_is_the_dense_solution(tmp_path, monkeypatch, weights, center):
    monkeypatch.setattr("privshard.composition.curvature._COLUMNS", 6)  # pieces of a few rows
    pairs = [make(seed, center=center) for seed in range(3)]
    found = curved_average(*write(tmp_path, pairs), {f"c{k}": w for k, w in enumerate(weights)})
    for name, array in dense(pairs, weights).items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)


def test_a_component_that_is_left_out_leaves_no_trace(tmp_path):
    pairs = [make(seed) for seed in range(3)]
    files, curvatures = write(tmp_path, pairs)
    two = curved_average(files, curvatures, {"c2": 0.5, "c0": 0.5})
    others = curved_average({"c0": files["c0"], "c2": files["c2"]}, curvatures, {"c0": 0.5, "c2": 0.5})
    assert {name: array.tobytes() for name, array in two.items()} == {n: a.tobytes() for n, a in others.items()}
    scaled = curved_average(files, curvatures, {"c0": 4.0, "c2": 4.0})
    for name, array in two.items():
        np.testing.assert_allclose(scaled[name], array, rtol=1e-5, atol=1e-6)


def test_one_component_and_equal_ones_come_back_as_they_are(tmp_path):
    arrays, around = make(0)
    files, curvatures = write(tmp_path, [(arrays, around), (arrays, make(1)[1])])
    for weights in ({"c0": 0.3}, {"c0": 0.5, "c1": 0.5}):
        found = curved_average(files, curvatures, weights)
        assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert curved_average(files, curvatures, {}) == {}


def test_without_any_rows_it_is_the_average():
    pairs = [make(seed, rows=0) for seed in range(2)]
    found = by_curvature(
        {str(k): Held(arrays) for k, (arrays, _) in enumerate(pairs)},
        {str(k): Held(around) for k, (_, around) in enumerate(pairs)},
        {"0": 0.5, "1": 0.5},
        shapes=SHAPES,
    )
    for name, array in found.items():
        np.testing.assert_allclose(array, (pairs[0][0][name] + pairs[1][0][name]) / 2, rtol=1e-6)


def test_refusals_say_what_is_wrong(tmp_path):
    files, curvatures = write(tmp_path, [make(0), make(1)])
    both = {"c0": 0.5, "c1": 0.5}
    with pytest.raises(InputError, match="expected a weight above 0"):
        curved_average(files, curvatures, {"c0": 1.0, "c1": 0.0})
    with pytest.raises(InputError, match="finite weight"):
        curved_average(files, curvatures, {"c0": 1.0, "c1": float("nan")})
    with pytest.raises(VerificationError, match="expected its curvature beside it"):
        curved_average(files, {"c0": curvatures["c0"]}, both)
    around = make(1)[1]
    for wrong in (
        {name: array for name, array in around.items() if name != "ridge/head.bias"},
        {**around, "factor/head.bias": around["factor/head.bias"][:2]},
        {**around, "center": np.zeros(5)},
        {**around, "more": np.zeros(1)},
    ):
        save_file(wrong, curvatures["c1"])
        with pytest.raises(VerificationError, match="expected a curvature of its tensors"):
            curved_average(files, curvatures, both)
    curvatures["c1"].write_bytes(b"{}")
    with pytest.raises(VerificationError, match="whole safetensors file"):
        curved_average(files, curvatures, both)
