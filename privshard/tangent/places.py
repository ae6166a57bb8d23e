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
    """Gradient of one weight (G * O, I): group g of its rows gets scale * sum_t outer(b[t, g], a[t, g]).

    shape: of the parameter, where it has the same numbers in another shape. scale: above 0; norms and sums are
    multiplied by it, the factors never are.
    """

    name: str
    b_BTGO: Tensor
    a_BTGI: Tensor
    shape: tuple[int, ...] | None = None
    scale: float = 1.0

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """b and a in one type: the wider, where they differ."""
        dtype = torch.promote_types(self.b_BTGO.dtype, self.a_BTGI.dtype)
        return self.b_BTGO.to(dtype), self.a_BTGI.to(dtype)

    @property
    def rounds(self) -> bool:
        """Whether `weighted_sum` rounds weighted factors to bf16."""
        return self.b_BTGO.dtype == self.a_BTGI.dtype == torch.bfloat16

    def squared_norms(self, slots_UM: Tensor | None) -> Tensor:
        """Of each unit's gradient (U,); slots as from `_slots`, None where every example is its own unit."""
        b, a = (_tokens(factor, slots_UM) for factor in self.factors)
        num_tokens, out_width, in_width = b.shape[1], b.shape[-1], a.shape[-1]
        if num_tokens == 1:
            square_U = (_wide(b).square().sum(-1) * _wide(a).square().sum(-1)).sum((1, 2))
            return _times(square_U, self.scale**2)
        b, a = b.transpose(1, 2), a.transpose(1, 2)
        if num_tokens * (out_width + in_width) <= out_width * in_width:
            square_U = (_product(b, b.mT) * _product(a, a.mT)).sum((1, 2, 3))
        else:
            square_U = _product(b.mT, a).square().sum((1, 2, 3))
        return _times(square_U, self.scale**2)

    def squared_slack(self, slots_UM: Tensor | None) -> Tensor:
        """sum_g (scale sum_t |b_tg| |a_tg|)^2 of each unit (U,)."""
        length_BTG = _wide(self.b_BTGO).norm(dim=-1) * _wide(self.a_BTGI).norm(dim=-1)
        return _times(_tokens(length_BTG, slots_UM).sum(1).square().sum(1), self.scale**2)

    def weighted_sum(self, weight_B: Tensor) -> Tensor:
        """(G * O, I) or `shape`, at least in fp32."""
        b, a = self.factors
        b, a = _kept(_wide(b), weight_B), _kept(a, weight_B)
        b = (b * weight_B.to(b.dtype)[:, None, None, None]).to(a.dtype)
        total = _product(b.flatten(0, 1).transpose(0, 1).mT, a.flatten(0, 1).transpose(0, 1)).flatten(0, 1)
        total = _times(total, self.scale)
        return total if self.shape is None else total.reshape(self.shape)


@dataclass(frozen=True)
class Direct:
    """Gradient of a parameter, scale * g, example by example. shape: of the parameter, where it is no vector."""

    name: str
    g_BP: Tensor
    shape: tuple[int, ...] | None = None
    scale: float = 1.0

    def squared_norms(self, slots_UM: Tensor | None) -> Tensor:
        """Of each unit's gradient (U,)."""
        g_BP = _wide(self.g_BP)
        g_UP = g_BP if slots_UM is None else _tokens(g_BP.unsqueeze(1), slots_UM).sum(1)
        return _times(g_UP.square().sum(1), self.scale**2)

    def weighted_sum(self, weight_B: Tensor) -> Tensor:
        """(P,) or `shape`, at least in fp32."""
        g_BP = _kept(_wide(self.g_BP), weight_B)
        total_P = _times((weight_B.to(g_BP.dtype)[:, None] * g_BP).sum(0), self.scale)
        return total_P if self.shape is None else total_P.reshape(self.shape)


_ROUNDING = 2.0**-8
"""The most that rounding to bf16 changes a number, relative to it."""


@dataclass(frozen=True)
class Places:
    """The gradients of a batch over all parameters (`privshard.core.method.UnitGradients`).

    Places of one name are consecutive rows of that parameter, in order. Squares and sums are taken of the factors as
    they are and accumulate in fp32 at least. Where factors are bf16, a sum rounds weight * b_t once more, so what a
    unit adds is off by at most 2^-8 weight sum_t |b_t| |a_t| at each place; its norm is then given with that on top.
    """

    places: Sequence[Outer | Direct]

    def bounded(self) -> Places:
        """These: `squared_norms` bound what `weighted_sum` adds as they are."""
        return self

    def squared_norms(self, unit_B: Tensor | None, num_units: int) -> Tensor:
        """Squared norm (U,) of each unit's gradient over all parameters, and of what rounding may add to it."""
        slots_UM = None if unit_B is None else _slots(unit_B, num_units)  # pyright: ignore[reportCallIssue]
        norms_U = torch.stack([place.squared_norms(slots_UM) for place in self.places]).sum(0)
        rounded = [place for place in self.places if isinstance(place, Outer) and place.rounds]
        if not rounded:
            return norms_U
        slack_U = torch.stack([place.squared_slack(slots_UM) for place in rounded]).sum(0)
        return (norms_U.sqrt() + _ROUNDING * slack_U.sqrt()).square()

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """Parameter name -> sum_i weight_i g_i. Examples of weight 0 are left out, so their values don't matter."""
        rows: dict[str, list[Tensor]] = {}
        for place in self.places:
            rows.setdefault(place.name, []).append(place.weighted_sum(weight_B))
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


def _tokens(x_BT: Tensor, slots_UM: Tensor | None) -> Tensor:
    """(B, T, ...) -> (U, M * T, ...): all tokens of a unit, zeros where it has fewer examples."""
    if slots_UM is None:
        return x_BT
    return torch.cat([x_BT, x_BT.new_zeros(1, *x_BT.shape[1:])])[slots_UM].flatten(1, 2)


def _kept(x_B: Tensor, weight_B: Tensor) -> Tensor:
    """`x` with zeros for the examples of weight 0, whatever they held."""
    return torch.where((weight_B != 0).reshape(-1, *[1] * (x_B.ndim - 1)), x_B, 0.0)


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right; bf16 entries are multiplied exactly and summed in fp32."""
    if left.dtype != torch.bfloat16:
        return left @ right
    if not left.is_cuda:
        return left.float() @ right.float()
    out = torch.bmm(left.flatten(0, -3), right.flatten(0, -3), out_dtype=torch.float32)
    return out.unflatten(0, left.shape[:-2])
