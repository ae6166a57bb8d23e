"""The weighted sum of displacements in memory: the public `privshard.compose`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch

from privshard.composition.weights import check_space
from privshard.core.displacement import Displacement
from privshard.core.errors import InputError


def compose(components: Sequence[Displacement], *, weights: Sequence[float] | None = None) -> Displacement:
    """Combine displacements of one base and space: D = sum_i weights_i D_i; by default their mean.

    Composing weights is composing outputs: for a linearized model, f0 + J D = f0 + sum_i weights_i J D_i. In the spaces
    "weight" and "prompt" it is an approximation of that.

    Guarantees: one component with weight 1 comes back bit for bit; sums are taken in double precision in the order of
    the displacements' digests and rounded once, so the order of the arguments leaves no trace, and fp32 components give
    the bits that `composition.average` gives on disk, where their ids are these digests. Not guaranteed: that weights
    sum to one (shard components average, edits add).

    components: at least one. weights: one finite number each.

    Raises InputError for no components, another number of weights, displacements of different kinds, and weights of
    prompts that are no average.

    >>> d = Displacement({"head.bias": torch.tensor([1.0, 3.0])}, base="b", space="tangent")
    >>> compose([d, 3 * d]).tensors["head.bias"].tolist()
    [2.0, 6.0]

    Test: tests/composition/test_displacements.py.
    """
    if not components:
        raise InputError(
            "compose: expected at least one displacement, got none.",
            remedy="The empty composition is the base itself; it needs no displacement.",
        )
    chosen = [1.0 / len(components)] * len(components) if weights is None else [float(weight) for weight in weights]
    if len(chosen) != len(components):
        raise InputError(f"compose: expected {len(components)} weights, one a displacement, got {len(chosen)}.")
    if not all(math.isfinite(weight) for weight in chosen):
        raise InputError(f"compose: expected finite weights, got {chosen}.")
    check_space({str(place): weight for place, weight in enumerate(chosen)}, space=components[0].space)
    ordered = sorted(zip(components, chosen, strict=True), key=lambda pair: (pair[0].digest, pair[1]))
    first, weight = ordered[0]
    total = first.to(torch.float64) * weight
    for item, weight in ordered[1:]:
        total = total + item.to(torch.float64) * weight
    return total.to(_common_dtype(components))


def _common_dtype(components: Sequence[Displacement]) -> torch.dtype:
    """The widest type among all tensors; fp32 for displacements without any."""
    found = {tensor.dtype for item in components for tensor in item.tensors.values()}
    return reduce(torch.promote_types, found) if found else torch.float32
