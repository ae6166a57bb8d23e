"""Where a decomposition begins: a model's random start, or the least-squares fit to its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from privshard.core.errors import InputError
from privshard.decomposition.basis import Basis
from privshard.decomposition.files import Decomposition
from privshard.decomposition.stacks import Stack, find_stacks, plain_names
from privshard.models.architecture import Architecture

_COLUMNS = 1 << 16


@dataclass(frozen=True)
class Fit:
    """A least-squares decomposition, and what it leaves: for each stack, parameter and number of components.

    residuals: stack -> parameter -> |W - W_k| / |W| over all blocks, for models recomposed from the first k = 1, 2, …
    """

    decomposition: Decomposition
    residuals: Mapping[str, Mapping[str, tuple[float, ...]]]


def random_start(state: Mapping[str, np.ndarray], architecture: Architecture, *, basis: Basis) -> Decomposition:
    """One component, the model's own random first block, beside its random plain parts."""
    stacks = find_stacks(_shapes(state))
    components = {
        stack.prefix: {name: np.array(state[stack.full_name(0, name)])[None] for name in stack.shapes}
        for stack in stacks
    }
    return _decomposition(state, architecture, basis, stacks, components, count=1)


def fit(state: Mapping[str, np.ndarray], architecture: Architecture, *, basis: Basis, components: int) -> Fit:
    """The components that minimize sum_l |W_l - sum_n a(l, n) A_n|^2 for a given model, by stack.

    A stack takes at most as many components as it has blocks. With as many, and a basis of full rank, the residual is
    rounding. Computed in double precision, kept in single. The first k of K fitted components are not the best k,
    unless the coefficients are orthogonal (chebyshev on nodes): residuals are those of what `recompose` gives.

    Raises InputError for more components than any stack has blocks.

    Test: tests/decomposition/test_start.py.
    """
    stacks = find_stacks(_shapes(state))
    deepest = max(stack.depth for stack in stacks)
    if not 1 <= components <= deepest:
        raise InputError(
            f"components: expected 1 to {deepest}, the number of blocks, got {components}.",
            remedy="More components than blocks are not determined by the model's weights.",
        )
    made: dict[str, dict[str, np.ndarray]] = {}
    residuals: dict[str, dict[str, tuple[float, ...]]] = {}
    for stack in stacks:
        count = min(components, stack.depth)
        a_LK = basis.coefficients(stack.depth, components=count)
        made[stack.prefix], residuals[stack.prefix] = {}, {}
        for name in stack.shapes:
            blocks_LP = np.stack([np.asarray(state[stack.full_name(i, name)]).ravel() for i in range(stack.depth)])
            found_KP, left = _solve(a_LK, blocks_LP)
            made[stack.prefix][name] = found_KP.reshape(count, *stack.shapes[name])
            residuals[stack.prefix][name] = left
    return Fit(_decomposition(state, architecture, basis, stacks, made, count=components), residuals)


def _solve(a_LK: np.ndarray, blocks_LP: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    """Components (K, P) in single precision, and the relative residual of the first 1, 2, …, K of them."""
    inverse_KL = np.linalg.pinv(a_LK)
    found_KP = np.empty((a_LK.shape[1], blocks_LP.shape[1]), dtype=np.float32)
    left_K, total = np.zeros(a_LK.shape[1]), 0.0
    for start in range(0, blocks_LP.shape[1], _COLUMNS):
        part_LP = blocks_LP[:, start : start + _COLUMNS].astype(np.float64)
        found_KP[:, start : start + _COLUMNS] = inverse_KL @ part_LP
        total += float(np.square(part_LP).sum())
        for n in range(a_LK.shape[1]):
            part_LP = part_LP - a_LK[:, n, None] * found_KP[n, start : start + _COLUMNS]
            left_K[n] += float(np.square(part_LP).sum())
    return found_KP, tuple(float(x) for x in np.sqrt(left_K / total)) if total else (0.0,) * len(left_K)


def _decomposition(
    state: Mapping[str, np.ndarray],
    architecture: Architecture,
    basis: Basis,
    stacks: Sequence[Stack],
    components: Mapping[str, Mapping[str, np.ndarray]],
    *,
    count: int,
) -> Decomposition:
    plain = {name: np.array(state[name], dtype=np.float32) for name in plain_names(list(state))}
    return Decomposition(architecture, basis, tuple(stacks), (count,), components, (plain,))


def _shapes(state: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    odd = [name for name, array in state.items() if array.dtype != np.float32]
    if odd:
        raise InputError(f"model: expected weights in single precision alone, got {state[odd[0]].dtype} in {odd[0]}.")
    return {name: tuple(array.shape) for name, array in state.items()}
