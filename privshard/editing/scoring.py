"""A trained hypernetwork as a few batched operations: one transformer pass, one product for all heads of a size.

B images, S slots, N = S + 1 tokens, D width, H attention heads, K neurons of a slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privshard.editing.hypernetwork import Hypernetwork


@dataclass(frozen=True, eq=False)
class _Heads:
    """The heads of slots of one size. rows: their tokens, counted from the image's; weight_SDK, bias_S1K: stacked."""

    names: tuple[str, ...]
    rows: slice | list[int]
    weight_SDK: Tensor
    bias_S1K: Tensor


@dataclass(frozen=True, eq=False)
class Scorer:
    """What scores neurons, for inference: it has no gradients, and a copy of the heads on one device."""

    network: Hypernetwork
    heads: tuple[_Heads, ...]

    @torch.no_grad()
    def scores(self, feature_BD: Tensor) -> dict[str, Tensor]:
        """Scores (B, K) of each slot's neurons, by name.

        What the hypernetwork's own `forward` gives, to rounding (tests/editing/test_scoring.py); no loop over slots,
        no wait for the device.
        """
        net = self.network
        x_BND = torch.cat([net.norm_in(feature_BD).unsqueeze(1), net.tokens_SD.expand(len(feature_BD), -1, -1)], dim=1)
        for block in net.blocks.layers:
            x_BND = _block(block, x_BND, net.shape.num_heads)  # pyright: ignore[reportArgumentType]
        out_NBD = net.norm_out(x_BND).transpose(0, 1)
        found: dict[str, Tensor] = {}
        for group in self.heads:
            score_SBK = torch.baddbmm(group.bias_S1K, out_NBD[group.rows], group.weight_SDK)
            found |= zip(group.names, score_SBK.unbind(), strict=True)
        return {name: found[name] for name, *_ in net.shape.slots}


def scorer(network: Hypernetwork) -> Scorer:
    """The scorer of a network as it is now, on the network's device: later changes of the heads don't reach it."""
    by_size: dict[int, list[int]] = {}
    slots = network.shape.slot_views
    for at, slot in enumerate(slots):
        by_size.setdefault(slot.size, []).append(at)
    groups = []
    for members in by_size.values():
        heads = [network.heads[at] for at in members]
        weight = torch.stack([head.get_parameter("weight").detach().mT for head in heads])
        bias = torch.stack([head.get_parameter("bias").detach() for head in heads]).unsqueeze(1)
        groups.append(_Heads(tuple(slots[at].name for at in members), _rows(members), weight.contiguous(), bias))
    return Scorer(network, tuple(groups))


def _rows(members: list[int]) -> slice | list[int]:
    """Their tokens: a range where they are evenly spaced, so that none is copied; always so for blocks in a row."""
    steps = {after - before for before, after in pairwise(members)}
    if len(steps) > 1:
        return [at + 1 for at in members]
    return slice(members[0] + 1, members[-1] + 2, next(iter(steps), 1))


def _block(block: nn.TransformerEncoderLayer, x_BND: Tensor, num_heads: int) -> Tensor:
    """One pre-norm block of `nn.TransformerEncoder`, with its three projections in one product."""
    attention = block.self_attn
    joined = F.linear(block.norm1(x_BND), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = joined.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    mixed_BHNE = F.scaled_dot_product_attention(q, k, v)
    x_BND = x_BND + attention.out_proj(mixed_BHNE.transpose(1, 2).flatten(2))
    return x_BND + block.linear2(F.gelu(block.linear1(block.norm2(x_BND))))
