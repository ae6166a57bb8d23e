"""Where components lie in weight space: how far from the others, and whether they pull the same way.

Shapes: S components, N numbers of one slice of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privshard.composition.files import ComponentFiles, open_components
from privshard.core.errors import InputError

SLICE_ELEMENTS = 2**22


@dataclass(frozen=True, eq=False)
class Geometry:
    """Inner products <D_i, D_j> of components, and |D_i - mean of the others|, in sorted order of their ids."""

    ids: tuple[str, ...]
    gram_SS: np.ndarray
    distance_S: np.ndarray

    def cosines(self) -> list[list[float | None]]:
        """Conflict matrix: <D_i, D_j> / (|D_i| |D_j|), in [-1, 1]; None where a component is zero.

        Negative: the two pull the weights apart, and averaging cancels part of what each learnt. 1 on the diagonal.
        """
        norm_S = np.sqrt(np.diag(self.gram_SS))
        return [[self._cosine(i, j, norm_S) for j in range(len(self.ids))] for i in range(len(self.ids))]

    def _cosine(self, i: int, j: int, norm_S: np.ndarray) -> float | None:
        if norm_S[i] == 0 or norm_S[j] == 0:
            return None
        if i == j:
            return 1.0
        return float(np.clip(self.gram_SS[i, j] / norm_S[i] / norm_S[j], -1.0, 1.0))


def component_geometry(paths: Mapping[str, Path]) -> Geometry:
    """Measure components in one pass over their files, a slice of one tensor at a time.

    distance_i = |D_i - mean_{j != i} D_j| = S/(S-1) |D_i - mean_j D_j|, the weight influence of TAFT. The right-hand
    form is what is computed: it needs no difference of large inner products, so equal components are at distance 0
    exactly. A single component has no others; its distance is its norm, the distance from the base.

    paths: component id -> safetensors file. Memory: a few times 32 MB (or S rows of the widest tensor, if more).

    Raises InputError for components of different kinds, and for tensors that are not finite.

    Test: tests/influence/test_geometry.py.
    """
    ids = tuple(sorted(paths))
    gram_SS, squares_S = np.zeros((len(ids), len(ids))), np.zeros(len(ids))
    if not ids:
        return Geometry(ids, gram_SS, squares_S)
    with open_components(paths) as files:
        for name in files.names:
            for x_SN in _slices(files, name):
                gram_SS += x_SN @ x_SN.T
                squares_S += np.square(x_SN - x_SN.mean(axis=0)).sum(axis=1)
    broken = [name for name, square in zip(ids, np.diag(gram_SS), strict=True) if not math.isfinite(square)]
    if broken:
        raise InputError(
            f"Components {broken} hold NaN or infinity.",
            remedy="They diverged: drop them, or retrain their shards with a lower training.lr.",
        )
    if len(ids) == 1:
        return Geometry(ids, gram_SS, np.sqrt(np.diag(gram_SS)))
    return Geometry(ids, gram_SS, len(ids) / (len(ids) - 1) * np.sqrt(squares_S))


def _slices(files: ComponentFiles, name: str) -> Iterator[np.ndarray]:
    """One tensor of all components, in float64 and in slices along its first dimension."""
    shape = files.header.shapes[name]
    if not shape:
        yield np.array([[files.handles[item].get_tensor(name)] for item in files.ids], dtype=np.float64)
        return
    row_elements = max(1, math.prod(shape[1:]) * len(files.ids))
    step = max(1, SLICE_ELEMENTS // row_elements)
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        rows = [files.handles[item].get_slice(name)[start:stop] for item in files.ids]
        yield np.stack([row.reshape(-1) for row in rows]).astype(np.float64)
