"""Composition by curvature: the optimum of all shards' objectives together, each by its second order.

S components, R directions of each, C classes, D width, P numbers of a displacement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from privshard.composition.files import open_components
from privshard.composition.weights import check_space, check_weights
from privshard.core.errors import InputError, VerificationError
from privshard.store.tensors import open_lazy

FACTOR, RIDGE, CENTER = "factor/", "ridge/", "center"
_WEIGHT, _BIAS = "head.weight", "head.bias"
_COLUMNS = 1 << 13


class Tensors(Protocol):
    """Named arrays of which parts can be read: what an open safetensors file is."""

    def keys(self) -> Iterable[str]:
        """Their names."""
        ...

    def get_tensor(self, name: str) -> np.ndarray:
        """All of one."""
        ...

    def get_slice(self, name: str) -> Any:
        """Something to index."""
        ...


@dataclass(frozen=True)
class Held:
    """`Tensors` in memory."""

    arrays: Mapping[str, np.ndarray]

    def keys(self) -> Iterable[str]:
        """Their names."""
        return self.arrays.keys()

    def get_tensor(self, name: str) -> np.ndarray:
        """The array of this name."""
        return self.arrays[name]

    def get_slice(self, name: str) -> np.ndarray:
        """The array of this name."""
        return self.arrays[name]


def curved_average(
    components: Mapping[str, Path], curvatures: Mapping[str, Path], weights: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """`by_curvature` of files on disk: the rule `curvature` as `privshard.composition.average` is the rule `average`.

    Raises what `average` raises; InputError for a weight that is not above 0, VerificationError for a component without
    curvature, and for curvatures that are not about its tensors.
    """
    check_weights(weights, components, what="a file")
    missing = sorted(weights.keys() - curvatures.keys())
    if missing:
        raise VerificationError(
            f"Component {missing[0]}: expected its curvature beside it, found none.",
            remedy="Restore it from a backup, or retrain or drop its shard.",
        )
    if not weights:
        return {}
    with ExitStack() as stack:
        files = stack.enter_context(open_components({name: components[name] for name in weights}))
        check_space(weights, space=files.header.space)
        around = {name: stack.enter_context(open_lazy(curvatures[name])) for name in files.ids}
        for name, handle in around.items():
            check_curvature(name, _shapes(handle), files.header.shapes)
        return by_curvature(files.handles, around, weights, shapes=files.header.shapes)


def by_curvature(
    components: Mapping[str, Tensors],
    curvatures: Mapping[str, Tensors],
    weights: Mapping[str, float],
    *,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """D = (sum_k w_k A_k)^-1 sum_k w_k A_k D_k, A_k = F_k^T F_k + the ridge of shard k, as
    `privshard.training.curvature` keeps both.

    It minimizes sum_k w_k (D - D_k)^T A_k (D - D_k): where D_k is the optimum of shard k and F_k^T F_k all of its
    curvature, this is the sum of the shards' objectives up to second order. For the square loss, and w_k all equal, it
    is therefore the optimum of all shards' rows together, with the ridge that a mean over all of them would have
    (tests/training/test_curvature.py). Otherwise it is as good as second order and the directions that were kept.

    Guarantees:
    - a function of (id, weight, tensors, curvature) of the weighted components alone, in sorted order of the ids and in
      double precision: a component that is dropped leaves no trace;
    - one component comes back bit for bit; so does the average where no shard has any rows.

    Cost: (S R)^2 P multiplications and (S R)^3 / 3; memory for two matrices of (S R)^2 and some columns of S R.

    weights: above 0; only their proportions matter. shapes: of the displacement's tensors.
    """
    ids = sorted(weights)
    wrong = [name for name in ids if not weights[name] > 0]
    if wrong:
        raise InputError(
            f"Component {wrong[0]}: expected a weight above 0 beside its curvature, got {weights[wrong[0]]}."
        )
    if len(ids) == 1:
        return {name: np.array(components[ids[0]].get_tensor(name)) for name in shapes}
    total = float(sum(weights[name] for name in ids))
    return _solve(
        [components[name] for name in ids],
        [curvatures[name] for name in ids],
        [weights[name] / total for name in ids],
        dict(sorted(shapes.items())),
    )


def check_curvature(component: str, kept: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """VerificationError unless a curvature has a factor and a ridge of every tensor, with as many directions for each,
    and otherwise at most a center of the head's width."""
    directions = {kept.get(FACTOR + name, ())[:1] for name in shapes}
    wanted: dict[str, tuple[int, ...]] = {RIDGE + name: () for name in shapes}
    if len(directions) == 1:
        wanted |= {FACTOR + name: (*next(iter(directions)), *shape) for name, shape in shapes.items()}
    if CENTER in kept and _WEIGHT in shapes:
        wanted[CENTER] = shapes[_WEIGHT][1:]
    if directions == {()} or dict(kept) != wanted:
        wrong = sorted(key for key in kept.keys() | wanted.keys() if kept.get(key) != wanted.get(key))
        raise VerificationError(
            f"Component {component}: expected a curvature of its tensors, got another one ({', '.join(wrong[:3])}).",
            remedy="Restore it from a backup, or retrain or drop its shard.",
        )


@dataclass(frozen=True)
class _Part:
    """Some rows of one tensor, or of the head's weight and bias side by side; and what the ridges of each component are
    there: a number, or a matrix (D + 1, D + 1) where they tie a row's weights to its bias."""

    name: str
    rows: slice
    with_bias: bool
    ridges: tuple[np.ndarray, ...]

    def read(self, tensors: Tensors, *, prefix: str = "", leading: int = 0) -> np.ndarray:
        """The part of a displacement (1, q), or with prefix and leading of a factor (R, q); float64."""
        index = (slice(None),) * leading + (self.rows,)
        found = np.asarray(tensors.get_slice(prefix + self.name)[index], dtype=np.float64)
        if self.with_bias:
            bias = np.asarray(tensors.get_slice(prefix + _BIAS)[index], dtype=np.float64)
            found = np.concatenate([found, bias[..., None]], axis=-1)
        return found.reshape(found.shape[0] if leading else 1, -1)

    def write(self, out: Mapping[str, np.ndarray], values_q: np.ndarray) -> None:
        """The inverse of `read`, for a displacement."""
        place = out[self.name][self.rows]
        if self.with_bias:
            both = values_q.reshape(len(place), -1)
            place[...], out[_BIAS][self.rows] = both[:, :-1], both[:, -1]
        else:
            place[...] = values_q.reshape(place.shape)


def _applied(ridge: np.ndarray, values_Rq: np.ndarray) -> np.ndarray:
    """A ridge, or the inverse of one, times each row."""
    if not ridge.ndim:
        return values_Rq * ridge
    return (values_Rq.reshape(len(values_Rq), -1, len(ridge)) @ ridge).reshape(values_Rq.shape)


def _solve(
    components: Sequence[Tensors],
    curvatures: Sequence[Tensors],
    weights: Sequence[float],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """The linear system, by the Woodbury identity with B, the sum of the ridges, which is easy to invert:
    (B + F^T F)^-1 g = x - B^-1 F^T (1 + F B^-1 F^T)^-1 F x with x = B^-1 g; F stacks sqrt(w_k) F_k. All relative to the
    average of the components, so that components that agree come back as they are."""
    parts = list(_parts(curvatures, shapes))
    sums = [np.sum([w * ridge for w, ridge in zip(weights, part.ridges, strict=True)], axis=0) for part in parts]
    out = {name: np.zeros(shape) for name, shape in shapes.items()}
    averages = [sum(w * part.read(c) for w, c in zip(weights, components, strict=True)) for part in parts]
    if not all(np.trace(np.atleast_2d(total)) > 0 for total in sums):  # no shard has any rows
        for part, average_1q in zip(parts, averages, strict=True):
            part.write(out, np.asarray(average_1q)[0])
        return {name: array.astype(np.float32) for name, array in out.items()}
    inverses = [np.linalg.inv(total) if total.ndim else 1 / total for total in sums]
    roots = np.sqrt(weights)
    along = 0.0  # F_k (D_k - average) of each component, one after the other
    for part, average_1q in zip(parts, averages, strict=True):
        factors = [part.read(around, prefix=FACTOR, leading=1) for around in curvatures]
        along = along + np.concatenate(
            [f_Rq @ (part.read(c) - average_1q)[0] for f_Rq, c in zip(factors, components, strict=True)]
        )
    size = len(np.atleast_1d(along))
    directions = size // len(weights)
    along = along * np.repeat(roots, directions)
    inner, target, steps = np.eye(size), np.zeros(size), []
    for part, inverse, average_1q in zip(parts, inverses, averages, strict=True):
        stack = _stacked(part, curvatures, roots)
        pull_1q = (along @ stack)[None]
        for weight, ridge, component in zip(weights, part.ridges, components, strict=True):
            pull_1q += weight * _applied(ridge, part.read(component) - average_1q)
        step_1q = _applied(inverse, pull_1q)
        target += stack @ step_1q[0]
        inner += stack @ _applied(inverse, stack).T
        steps.append(step_1q)
    answer = np.linalg.solve((inner + inner.T) / 2, target)
    for part, inverse, average_1q, step_1q in zip(parts, inverses, averages, steps, strict=True):
        back_1q = _applied(inverse, (answer @ _stacked(part, curvatures, roots))[None])
        part.write(out, np.asarray(average_1q + step_1q - back_1q)[0])
    return {name: array.astype(np.float32) for name, array in out.items()}


def _stacked(part: _Part, curvatures: Sequence[Tensors], roots: np.ndarray) -> np.ndarray:
    """sqrt(w_k) F_k of all components, (S R, q)."""
    found = [part.read(around, prefix=FACTOR, leading=1) for around in curvatures]
    return np.concatenate([f_Rq * root for f_Rq, root in zip(found, roots, strict=True)])


def _parts(curvatures: Sequence[Tensors], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[_Part]:
    """All tensors in pieces of about as many numbers; a ridge doesn't tie numbers of different pieces."""
    paired = _WEIGHT in shapes and _BIAS in shapes
    for name, shape in shapes.items():
        if paired and name == _BIAS:
            continue
        with_bias = paired and name == _WEIGHT
        ridges = tuple(
            _head_ridge(around) if with_bias else np.asarray(around.get_tensor(RIDGE + name), dtype=np.float64)
            for around in curvatures
        )
        step = max(1, _COLUMNS // max(1, int(np.prod(shape[1:]))))
        for start in range(0, shape[0], step):
            yield _Part(name, slice(start, min(start + step, shape[0])), with_bias, ridges)


def _head_ridge(around: Tensors) -> np.ndarray:
    """The ridge of one class' weights w and bias b: r |w|^2 + s (b + w . center)^2."""
    weight, bias = (np.asarray(around.get_tensor(RIDGE + name), dtype=np.float64) for name in (_WEIGHT, _BIAS))
    width = around.get_slice(FACTOR + _WEIGHT)
    size = (width.shape if isinstance(width, np.ndarray) else width.get_shape())[2]
    center = np.zeros(size)
    if CENTER in frozenset(around.keys()):
        center = np.asarray(around.get_tensor(CENTER), dtype=np.float64)
    tied = np.append(center, 1.0)
    return np.diag(np.append(np.full(size, weight), 0.0)) + bias * np.outer(tied, tied)


def _shapes(handle: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
