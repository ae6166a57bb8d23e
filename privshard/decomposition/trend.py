"""Do a model's blocks lie on a line over depth? Principal components of their weights, and a line through them.

Letters: L blocks, H heads, T kinds of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from privshard.core.errors import InputError
from privshard.decomposition.stacks import Stack, find_stacks


@dataclass(frozen=True)
class Trend:
    """One-dimensional scores over depth. r2: of the straight line, None where it says nothing (fewer than three blocks,
    or blocks that don't differ). explained: the part of the variance that the scores hold."""

    name: str
    scores: tuple[float, ...]
    r2: float | None
    explained: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {"name": self.name, "r2": self.r2, "explained": self.explained, "scores": list(self.scores)}


@dataclass(frozen=True)
class StackTrend:
    """The trend of one stack, of each of its kinds, and what R^2 a random order of the blocks has on average."""

    name: str
    depth: int
    overall: Trend
    kinds: tuple[Trend, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            **self.overall.to_json(),
            "name": self.name,
            "depth": self.depth,
            "r2_by_chance": 1 / (self.depth - 1) if self.depth > 2 else None,
            "kinds": [kind.to_json() for kind in self.kinds],
        }


def linear_trends(state: Mapping[str, np.ndarray], *, heads: Mapping[str, int]) -> tuple[StackTrend, ...]:
    """The linear-trend analysis of every stack of a model (a ViT has one, a Swin one a stage).

    For each kind of parameter the blocks' values are flattened, scaled to length 1, and projected onto their first
    principal component; the kinds' scores are stacked and projected again; R^2 is that of a line over depth. Queries
    and keys enter as W_q^T W_k of every head, which is what the model depends on; their biases are left out.

    heads: stack -> attention heads of its blocks. Raises InputError for a model without stacks of equal blocks.

    Paper: Linearly Decomposing and Recomposing Vision Transformers, the analysis that motivates it.
    Test: tests/decomposition/test_trend.py.
    """
    shapes = {name: tuple(array.shape) for name, array in state.items()}
    return tuple(_stack_trend(state, stack, heads.get(stack.prefix)) for stack in find_stacks(shapes))


def _stack_trend(state: Mapping[str, np.ndarray], stack: Stack, heads: int | None) -> StackTrend:
    values = {
        name: np.stack([np.asarray(state[stack.full_name(i, name)], np.float64) for i in range(stack.depth)])
        for name in stack.shapes
    }
    kinds = tuple(_of_gram(name, gram_LL) for name, gram_LL in _grams(values, heads).items())
    telling = [kind.scores for kind in kinds if kind.explained is not None]
    if not telling:
        return StackTrend(stack.prefix, stack.depth, Trend(stack.prefix, (0.0,) * stack.depth, None, None), kinds)
    scores_LT = np.array(telling).T
    overall = _of_gram(stack.prefix, _centred(scores_LT @ scores_LT.T), normalized=False)
    return StackTrend(stack.prefix, stack.depth, overall, kinds)


def _grams(values: Mapping[str, np.ndarray], heads: int | None) -> dict[str, np.ndarray]:
    """Inner products of the blocks' values (L, L), by kind."""
    grams: dict[str, np.ndarray] = {}
    for name, value in values.items():
        if name.endswith("attn.qkv.weight"):
            query, key, rest = np.split(value, 3, axis=1)
            grams[name.replace("qkv.weight", "QKᵀ")] = _products(query, key, heads)
            grams[name.replace("qkv.weight", "v.weight")] = _inner(rest)
        elif name.endswith("attn.qkv.bias"):
            grams[name.replace("qkv.bias", "v.bias")] = _inner(np.split(value, 3, axis=1)[2])
        elif name.endswith("attn.q_proj.weight") and name.replace("q_proj", "k_proj") in values:
            grams[name.replace("q_proj.weight", "QKᵀ")] = _products(value, values[name.replace("q_", "k_")], heads)
        elif not name.endswith(("q_proj.bias", "k_proj.bias", "k_proj.weight")):
            grams[name] = _inner(value)
    return grams


def _inner(value: np.ndarray) -> np.ndarray:
    flat = value.reshape(len(value), -1)
    return flat @ flat.T


def _products(query: np.ndarray, key: np.ndarray, heads: int | None) -> np.ndarray:
    """Inner products of W_q^T W_k over all heads, without forming it: tr((Q_l Q_m^T)^T (K_l K_m^T))."""
    if not heads or query.shape[1] % heads:
        raise InputError(f"model: expected attention heads that divide {query.shape[1]} rows, got {heads}.")
    q, k = (part.reshape(len(part), heads, -1, part.shape[2]) for part in (query, key))
    gram_LL = np.empty((len(q), len(q)))
    for first in range(len(q)):
        for second in range(first + 1):
            both = (q[first] @ q[second].swapaxes(1, 2)) * (k[first] @ k[second].swapaxes(1, 2))
            gram_LL[first, second] = gram_LL[second, first] = both.sum()
    return gram_LL


def _of_gram(name: str, gram_LL: np.ndarray, *, normalized: bool = True) -> Trend:
    """The trend of vectors whose inner products these are."""
    depth = len(gram_LL)
    if normalized:
        length_L = np.sqrt(np.diag(gram_LL))
        inverse_L = np.divide(1.0, length_L, out=np.zeros(depth), where=length_L > 0)
        gram_LL = _centred(gram_LL * np.outer(inverse_L, inverse_L))
    total = float(np.trace(gram_LL))
    if total <= 1e-12:
        return Trend(name, (0.0,) * depth, None, None)
    size, direction = np.linalg.eigh(gram_LL)
    scores_L = np.sqrt(max(size[-1], 0.0)) * direction[:, -1]
    place_L = np.arange(depth) - (depth - 1) / 2
    if scores_L @ place_L < 0:
        scores_L = -scores_L
    r2 = float((scores_L @ place_L) ** 2 / ((scores_L @ scores_L) * (place_L @ place_L))) if depth > 2 else None
    return Trend(name, tuple(float(score) for score in scores_L), r2, float(size[-1] / total))


def _centred(gram_LL: np.ndarray) -> np.ndarray:
    """Inner products after the mean vector is taken from each."""
    rows = gram_LL - gram_LL.mean(axis=0, keepdims=True)
    return rows - rows.mean(axis=1, keepdims=True)
