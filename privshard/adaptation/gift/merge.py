"""Fold a displacement into plain weights, and take it out again; pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from privshard.core.errors import InputError

_HALF_ULP = 2.0**-24
"""Relative error of rounding to fp32."""


@dataclass(frozen=True)
class Unmerged:
    """Weights after a residual was taken out. bound: the largest error that any of them can have."""

    state: dict[str, np.ndarray]
    bound: float


def merge_state(state: Mapping[str, np.ndarray], displacement: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """W + D for every displaced weight, summed in double precision and rounded to fp32 once; all others bit for bit.

    Raises InputError for a displacement of a parameter that the weights don't have, or of another shape.
    """
    _check(state, displacement)
    moved = {name: state[name].astype(np.float64) + value for name, value in displacement.items()}
    return {name: moved[name].astype(np.float32) if name in moved else array for name, array in state.items()}


def unmerge_state(merged: Mapping[str, np.ndarray], displacement: Mapping[str, np.ndarray]) -> Unmerged:
    """M - D for every displaced weight, in double precision, rounded to fp32 once.

    Merging rounded M = W + D + e with |e| <= 2^-24 |M|, and this rounds again, so each weight is within
    2^-24 (|M| + |W|) of what it was: bit for bit wherever |D| is small beside |W|, an ulp off elsewhere. No arithmetic
    can do better, since merging is not injective: where W is much smaller than D, several W give one M.
    """
    _check(merged, displacement)
    state, bound = dict(merged), 0.0
    for name, value in displacement.items():
        exact = merged[name].astype(np.float64) - value
        state[name] = exact.astype(np.float32)
        bound = max(bound, _HALF_ULP * float((np.abs(merged[name]) + np.abs(exact)).max(initial=0.0)))
    return Unmerged(state, bound)


def _check(state: Mapping[str, np.ndarray], displacement: Mapping[str, np.ndarray]) -> None:
    odd = [name for name in sorted(displacement) if name not in state or state[name].shape != displacement[name].shape]
    if odd:
        shown = "; ".join(
            f"{name}: {state[name].shape if name in state else 'absent'} against {displacement[name].shape}"
            for name in odd[:3]
        )
        raise InputError(
            f"merge: the displacement does not fit the weights, {len(odd)} names differ: {shown}.",
            remedy="Merge into the base that it was learnt on.",
        )
