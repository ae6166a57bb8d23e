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


NARROW_SLACK = 1 + 2.0**-8
"""What rounding to bf16 may add to a number, relative to it."""


@dataclass(frozen=True)
class Places:
    """The gradients of a batch over all parameters (`privshard.core.method.UnitGradients`).

    Places of one name are consecutive rows of that parameter, in order. Exact in the precision of the factors: squares
    and sums are taken of the factors as they are and accumulate in fp32 at least. One more rounding happens where the
    factors are bf16, to weight times b, so a unit of one example and one token a place adds at most `NARROW_SLACK`
    times its weighted norm; where the terms of a unit can cancel that is no bound, and `float` is needed.
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

    def narrow(self, *, alone: bool) -> bool:
        """Whether sums can be taken of these bf16 factors with `NARROW_SLACK`. alone: every unit is one example."""
        outer = [place for place in self.places if isinstance(place, Outer)]
        return alone and all(place.b_BTGO.dtype == torch.bfloat16 and place.b_BTGO.shape[1] == 1 for place in outer)

    def squared_norms(self, unit_B: Tensor | None, num_units: int) -> Tensor:
        """Squared norm (U,) of each unit's gradient over all parameters."""
        slots_UM = None if unit_B is None else _slots(unit_B, num_units)  # pyright: ignore[reportCallIssue]
        norms = [
            _outer_norms(place, slots_UM) if isinstance(place, Outer) else _direct_norms(place, slots_UM)
            for place in self.places
        ]
        return torch.stack(norms).sum(0)

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """Parameter name -> sum_i weight_i g_i. Examples of weight 0 are left out, so their values don't matter."""
        rows: dict[str, list[Tensor]] = {}
        for place in self.places:
            rows.setdefault(place.name, []).append(_weighted(place, weight_B))
        return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in rows.items()}


@torch.compiler.disable  # shapes that depend on data
def _slots(unit_B: Tensor, num_units: int) -> Tensor:
    """Examples of each unit (U, most examples), padded with B."""
    num = len(unit_B)
    counts_U = torch.bincount(unit_B, minlength=num_units)
    order = torch.argsort(unit_B, stable=True)
    start_U = counts_U.cumsum(0) - counts_U
    place_B = torch.arange(num, device=unit_B.device) - start_U[unit_B[order]]
    longest = int(counts_U.max()) if num else 1
    slots = torch.full((num_units, longest), num, device=unit_B.device)
    slots[unit_B[order], place_B] = order
    return slots


def _gather(x_B: Tensor, slots_UM: Tensor) -> Tensor:
    """(B, ...) -> (U, M, ...), zeros where a unit has fewer examples."""
    return torch.cat([x_B, x_B.new_zeros(1, *x_B.shape[1:])])[slots_UM]


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _outer_norms(place: Outer, slots_UM: Tensor | None) -> Tensor:
    b, a = _wide(place.b_BTGO), _wide(place.a_BTGI)
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
    g = _wide(place.g_BP)
    return (g if slots_UM is None else _gather(g, slots_UM).sum(1)).square().sum(1)


def _weighted(place: Outer | Direct, weight_B: Tensor) -> Tensor:
    if isinstance(place, Direct):
        g_BP = _kept(_wide(place.g_BP), weight_B)
        return (weight_B.to(g_BP.dtype)[:, None] * g_BP).sum(0)
    b, a = _kept(_wide(place.b_BTGO), weight_B), _kept(place.a_BTGI, weight_B)
    b = (b * weight_B.to(b.dtype)[:, None, None, None]).to(a.dtype)
    b_GOR, a_GRI = b.flatten(0, 1).transpose(0, 1).mT, a.flatten(0, 1).transpose(0, 1)
    return _product(b_GOR, a_GRI).flatten(0, 1)


def _kept(x_B: Tensor, weight_B: Tensor) -> Tensor:
    """`x` with zeros for the examples of weight 0, whatever they held."""
    return torch.where((weight_B != 0).reshape(-1, *[1] * (x_B.ndim - 1)), x_B, 0.0)


def _product(b_GOR: Tensor, a_GRI: Tensor) -> Tensor:
    """b a, bf16 factors multiplied exactly and summed in fp32."""
    if b_GOR.dtype != torch.bfloat16:
        return b_GOR @ a_GRI
    if b_GOR.is_cuda:
        return torch.bmm(b_GOR, a_GRI, out_dtype=torch.float32)
    return b_GOR.float() @ a_GRI.float()
