"""Tails: a model from the tokens that enter its first edited block to the logits, with some weights displaced.

A displacement has a leading axis: B, one edit for each image of the batch, so that many edits are learnt at once; or 1,
one edit for all of them. B batch, N tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privshard.core.displacement import Space
from privshard.models.vit import BlockView, ViTView
from privshard.tangent.dual import Dual, StoredDelta
from privshard.tangent.rules import join_heads, split_heads

Moved = Mapping[str, Tensor]


class Tail(Protocol):
    """What edits act on. Stateless; the model is frozen."""

    @property
    def view(self) -> ViTView:
        """The base."""
        ...

    @property
    def first_block(self) -> int:
        """The block that `tokens` enter."""
        ...

    @property
    def space(self) -> Space:
        """How displacements act."""
        ...

    def logits(self, tokens_BND: Tensor, moved: Moved) -> Tensor:
        """Logits (B, C) of the model with `moved` (parameter name -> (B or 1, out, in)) added to its weights."""
        ...


@dataclass(frozen=True, eq=False)
class WeightTail:
    """A plain model: displacements are added to the weights. Names that `moved` lacks stay as they are.

    Test: tests/editing/test_tail.py, against the whole model with changed weights.
    """

    view: ViTView
    first_block: int
    space: Space = "weight"

    def logits(self, tokens_BND: Tensor, moved: Moved) -> Tensor:
        """Logits (B, C)."""
        x = tokens_BND
        for block in self.view.blocks[self.first_block :]:
            x = _block(block, x, moved)
        return self.view.head(_pooled(self.view, x))


@dataclass(frozen=True, eq=False)
class TangentTail:
    """A linearized model at a point D of its tangent space: f0 + J (D + moved), linear in `moved`.

    point: parameter name -> tensor, of every parameter from `first_block` on; None for the base itself.
    Test: tests/editing/test_tail.py, against `torch.func.jvp`.
    """

    view: ViTView
    first_block: int
    point: Mapping[str, Tensor] | None = None
    space: Space = "tangent"

    def logits(self, tokens_BND: Tensor, moved: Moved) -> Tensor:
        """Logits (B, C)."""
        deltas = [_SlotDelta(self.view.parts(self.first_block), moved)] if moved else []
        if self.point is not None:
            deltas = [*deltas, StoredDelta(self.point)]
        out, _, _ = Dual(deltas).tail(self.view, tokens_BND, first_block=self.first_block)
        return sum((dx for dx in out.dxs if dx is not None), start=out.x)


@dataclass(frozen=True, eq=False)
class EditedTail:
    """Another tail in the presence of edits: what they displace (1, out, in) is added to whatever moves."""

    tail: Tail
    held: Moved

    @property
    def view(self) -> ViTView:
        """The base."""
        return self.tail.view

    @property
    def first_block(self) -> int:
        """The block that tokens enter; no edit moves an earlier one."""
        return self.tail.first_block

    @property
    def space(self) -> Space:
        """How displacements act."""
        return self.tail.space

    def logits(self, tokens_BND: Tensor, moved: Moved) -> Tensor:
        """Logits (B, C)."""
        both = {name: self.held[name] + moved[name] for name in self.held.keys() & moved.keys()}
        return self.tail.logits(tokens_BND, {**self.held, **moved, **both})


@torch.no_grad()
def features(view: ViTView, tokens_BND: Tensor, *, first_block: int) -> Tensor:
    """The base's feature (B, D), which its head reads: what a locator looks at."""
    x = tokens_BND
    for block in view.blocks[first_block:]:
        x = block.module(x)
    return _pooled(view, x)


@dataclass(frozen=True)
class _SlotDelta:
    """A displacement of some weights only; all others contribute zero."""

    parts: Mapping[str, nn.Module]
    moved: Moved

    def linear(self, name: str, x: Tensor) -> Tensor:
        delta = self.moved.get(f"{name}.weight")
        if delta is not None:
            return x @ delta.to(x.dtype).mT
        return x.new_zeros(*x.shape[:-1], len(self.parts[name].get_parameter("weight")))

    def norm(self, name: str, x: Tensor, n: Tensor) -> Tensor:
        return torch.zeros_like(n)

    def scale(self, name: str, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def added(self, name: str, like_BMD: Tensor) -> Tensor:
        return torch.zeros_like(like_BMD)


def _block(block: BlockView, x_BND: Tensor, moved: Moved) -> Tensor:
    """One block; its attention is left to its own module where nothing in it moves."""
    out = block.norm1(x_BND)
    if any(f"{block.name}.attn.{part}.weight" in moved for part in ("qkv", "proj")):
        out = _attention(block, out, moved)
    else:
        out = block.module.attn(out)  # pyright: ignore[reportCallIssue]
    x_BND = x_BND + (out if block.ls1 is None else block.ls1(out))
    out = block.act(_linear(f"{block.name}.mlp.fc1", block.fc1, block.norm2(x_BND), moved))
    if block.mlp_norm is not None:
        out = block.mlp_norm(out)
    out = _linear(f"{block.name}.mlp.fc2", block.fc2, out, moved)
    return x_BND + (out if block.ls2 is None else block.ls2(out))


def _attention(block: BlockView, x_BND: Tensor, moved: Moved) -> Tensor:
    joined = _linear(f"{block.name}.attn.qkv", block.qkv, x_BND, moved)
    q, k, v = split_heads(joined, 3 * block.num_heads).chunk(3, dim=1)
    q = q if block.q_norm is None else block.q_norm(q)
    k = k if block.k_norm is None else block.k_norm(k)
    out = join_heads(F.scaled_dot_product_attention(q, k, v, scale=block.scale))
    out = out if block.attn_norm is None else block.attn_norm(out)
    return _linear(f"{block.name}.attn.proj", block.proj, out, moved)


def _linear(name: str, module: nn.Linear, x_BND: Tensor, moved: Moved) -> Tensor:
    out, delta = module(x_BND), moved.get(f"{name}.weight")
    return out if delta is None else out + x_BND @ delta.mT


def _pooled(view: ViTView, x_BND: Tensor) -> Tensor:
    x_BND = x_BND if view.norm is None else view.norm(x_BND)
    pooled_BD = view.pool(x_BND)
    return pooled_BD if view.fc_norm is None else view.fc_norm(pooled_BD)
