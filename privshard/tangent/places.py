"""Per-example gradients in factored form: their norms and weighted sums, without ever holding one of them.

A weight that meets tokens a_t forward and b_t backward has the gradient sum_t outer(b_t, a_t). A unit (an example, or a
subject with several) is just a longer list of tokens, so one formula serves both: with the Gram matrices of its tokens,
|sum_t b_t a_t^T|^2 = sum_{t,s} (b_t . b_s)(a_t . a_s). Math.md, "Per-example gradients, clipping".

B examples, T tokens, G groups of rows (heads), O output and I input width of a group, U units, M tokens of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """Gradient of one weight (G * O, I): group g of its rows gets sum_t outer(b[t, g], a[t, g])."""

    name: str
    b_BTGO: Tensor
    a_BTGI: Tensor


@dataclass(frozen=True)
class Direct:
    """Gradient of a vector parameter, example by example."""

    name: str
    g_BP: Tensor


@dataclass(frozen=True)
class Places:
    """The gradients of a batch over all parameters (`privshard.core.method.UnitGradients`).

    Places of one name are consecutive rows of that parameter, in order. Exact in the precision of the factors.
    """

    places: Sequence[Outer | Direct]

    def float(self) -> Places:
        """The same factors in fp32: what is normed and summed is then exactly what they say."""
        return Places(
            [
                Direct(place.name, place.g_BP.float())
                if isinstance(place, Direct)
                else Outer(place.name, place.b_BTGO.float(), place.a_BTGI.float())
                for place in self.places
            ]
        )

    def squared_norms(self, unit_B: Tensor, num_units: int) -> Tensor:
        """Squared norm (U,) of each unit's gradient over all parameters."""
        slots_UM = _slots(unit_B, num_units)
        total_U = torch.zeros(num_units, dtype=_dtype(self.places[0]), device=unit_B.device)
        for place in self.places:
            total_U = total_U + (
                _outer_norms(place, slots_UM) if isinstance(place, Outer) else _direct_norms(place, slots_UM)
            )
        return total_U

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """Parameter name -> sum_i weight_i g_i. Examples of weight 0 are left out, so their values don't matter."""
        kept = weight_B.nonzero().squeeze(1)
        everything = len(kept) == len(weight_B)
        rows: dict[str, list[Tensor]] = {}
        for place in self.places:
            rows.setdefault(place.name, []).append(_weighted(place, weight_B, None if everything else kept))
        return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in rows.items()}


def _dtype(place: Outer | Direct) -> torch.dtype:
    return (place.b_BTGO if isinstance(place, Outer) else place.g_BP).dtype


def _slots(unit_B: Tensor, num_units: int) -> Tensor | None:
    """Examples of each unit (U, most examples), padded with B; None where every example is its own unit, in order."""
    num = len(unit_B)
    if num == num_units and bool((unit_B == torch.arange(num, device=unit_B.device)).all()):
        return None
    counts_U = torch.bincount(unit_B, minlength=num_units)
    order = torch.argsort(unit_B, stable=True)
    start_U = counts_U.cumsum(0) - counts_U
    place_B = torch.arange(num, device=unit_B.device) - start_U[unit_B[order]]
    slots = torch.full((num_units, max(int(counts_U.max()), 1)), num, device=unit_B.device)
    slots[unit_B[order], place_B] = order
    return slots


def _gather(x_B: Tensor, slots_UM: Tensor) -> Tensor:
    """(B, ...) -> (U, M, ...), zeros where a unit has fewer examples."""
    return torch.cat([x_B, x_B.new_zeros(1, *x_B.shape[1:])])[slots_UM]


def _outer_norms(place: Outer, slots_UM: Tensor | None) -> Tensor:
    b, a = place.b_BTGO, place.a_BTGI
    if slots_UM is not None:
        b, a = _gather(b, slots_UM).flatten(1, 2), _gather(a, slots_UM).flatten(1, 2)
    num_tokens, out_width, in_width = b.shape[1], b.shape[-1], a.shape[-1]
    if num_tokens == 1:
        return (b.square().sum(-1) * a.square().sum(-1)).sum((1, 2))
    b, a = b.transpose(1, 2), a.transpose(1, 2)
    if num_tokens * (out_width + in_width) <= out_width * in_width:
        return ((b @ b.mT) * (a @ a.mT)).sum((1, 2, 3))
    return (b.mT @ a).square().sum((1, 2, 3))


def _direct_norms(place: Direct, slots_UM: Tensor | None) -> Tensor:
    g = place.g_BP if slots_UM is None else _gather(place.g_BP, slots_UM).sum(1)
    return g.square().sum(1)


def _weighted(place: Outer | Direct, weight_B: Tensor, kept: Tensor | None) -> Tensor:
    if kept is not None:
        weight_B = weight_B[kept]
    if isinstance(place, Direct):
        return weight_B.to(place.g_BP.dtype) @ (place.g_BP if kept is None else place.g_BP[kept])
    b, a = (place.b_BTGO, place.a_BTGI) if kept is None else (place.b_BTGO[kept], place.a_BTGI[kept])
    b = b * weight_B.to(b.dtype)[:, None, None, None]
    b_GRO, a_GRI = b.flatten(0, 1).transpose(0, 1), a.flatten(0, 1).transpose(0, 1)
    return (b_GRO.mT @ a_GRI).flatten(0, 1)
