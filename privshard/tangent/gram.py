"""Inner products between the gradients of two batches, from their factors: entries of the tangent kernel J J^T.

With gradients sum_t outer(b_t, a_t) and sum_s outer(d_s, e_s) of one weight, their inner product is
sum_{t,s} (b_t . d_s)(a_t . e_s): no gradient is formed where a batch has fewer tokens than a weight has entries.

B and M examples, T tokens, G groups of rows (heads), O output and I input width of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from privshard.core.errors import InputError
from privshard.tangent.places import Direct, Outer, Places


def cross_gram(left: Places, right: Places) -> Tensor:
    """<g_i, h_j> over all parameters, (B, M), for the gradients g of one batch and h of another.

    Exact in the precision of the factors; tests/tangent/test_gram.py compares with formed gradients. Both must come
    from one method: InputError where their parameters differ.
    """
    mine, theirs = [place.name for place in left.places], [place.name for place in right.places]
    if mine != theirs:
        raise InputError(f"gram: expected the gradients of one method, got {mine[:3]}… and {theirs[:3]}….")
    total: Tensor | None = None
    for one, other in zip(left.places, right.places, strict=True):
        part = one.scale * other.scale * _pair(one, other)
        total = part if total is None else total + part
    assert total is not None
    return total


def gram_width(places: Places) -> int:
    """About how many multiplications one entry of `cross_gram` takes: what a choice by cost needs."""
    width = 0
    for place in places.places:
        if isinstance(place, Direct):
            width += place.g_BP.shape[1]
        else:
            _, tokens, groups, out = place.b_BTGO.shape
            into = place.a_BTGI.shape[3]
            width += groups * min(tokens * tokens * (out + into), out * into)
    return width


def _pair(one: Outer | Direct, other: Outer | Direct) -> Tensor:
    """Of the factors, without the scales."""
    if isinstance(one, Direct):
        assert isinstance(other, Direct)
        return one.g_BP @ other.g_BP.mT
    assert isinstance(other, Outer)
    tokens, out, into = one.b_BTGO.shape[1], one.b_BTGO.shape[3], one.a_BTGI.shape[3]
    if tokens * other.b_BTGO.shape[1] * (out + into) > out * into:
        return _formed(one) @ _formed(other).mT
    b_BTM = torch.einsum("btgo,msgo->gbtms", one.b_BTGO, other.b_BTGO)
    a_BTM = torch.einsum("btgi,msgi->gbtms", one.a_BTGI, other.a_BTGI)
    return (b_BTM * a_BTM).sum((0, 2, 4))


def _formed(place: Outer) -> Tensor:
    """The gradients themselves, flat: (B, G * O * I)."""
    return torch.einsum("btgo,btgi->bgoi", place.b_BTGO, place.a_BTGI).flatten(1)
