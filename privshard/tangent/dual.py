"""The dual stream: primal and tangent of the last blocks and the head, the primal computed once for any number of
tangents.

B batch, N tokens, D width, H heads, E head width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from privshard.models.vit import BlockView, ViTView
from privshard.tangent import rules


class Delta(Protocol):
    """The trainable displacement, as the three ways in which a layer's own parameters act on its primal input."""

    def linear(self, name: str, x: Tensor) -> Tensor:
        """dW x + db."""
        ...

    def norm(self, name: str, x: Tensor, n: Tensor) -> Tensor:
        """dg * n + dc, for the layer normalization of x whose normalized value is n."""
        ...

    def scale(self, name: str, x: Tensor) -> Tensor:
        """dgamma * x."""
        ...


@dataclass(frozen=True)
class StoredDelta:
    """A displacement held as named tensors. Its head acts on the feature minus `head_center_D`."""

    tensors: Mapping[str, Tensor]
    head_center_D: Tensor | float = 0.0

    def linear(self, name: str, x: Tensor) -> Tensor:
        if name == "head":
            x = x - self.head_center_D
        return self._affine(x @ self.tensors[f"{name}.weight"].to(x.dtype).mT, name, x.dtype)

    def norm(self, name: str, x: Tensor, n: Tensor) -> Tensor:
        return self._affine(n * self.tensors[f"{name}.weight"].to(n.dtype), name, n.dtype)

    def scale(self, name: str, x: Tensor) -> Tensor:
        return x * self.tensors[f"{name}.gamma"].to(x.dtype)

    def _affine(self, product: Tensor, name: str, dtype) -> Tensor:
        bias = self.tensors.get(f"{name}.bias")
        return product if bias is None else product + bias.to(dtype)


class Tape(Protocol):
    """Sees every parameter act: the layer's name, what its parameter multiplies, and its output."""

    def __call__(self, name: str, module: nn.Module, factor: Tensor, out: Tensor) -> None: ...


def no_tape(name: str, module: nn.Module, factor: Tensor, out: Tensor) -> None:
    """Record nothing."""


@dataclass(frozen=True)
class Stream:
    """A point of the network: the primal value, and one tangent for each delta (None where it is zero)."""

    x: Tensor
    dxs: tuple[Tensor | None, ...]


class Dual:
    """Evaluates layers on streams. `deltas` may be empty: then it is the plain network, seen by `tape`."""

    def __init__(self, deltas: Sequence[Delta], *, tape: Tape = no_tape) -> None:
        self._deltas = deltas
        self._tape = tape

    def tail(self, view: ViTView, tokens_BND: Tensor, *, first_block: int) -> Stream:
        """From the tokens that enter block `first_block` to the logits (B, C) and their tangents."""
        at = Stream(tokens_BND, (None,) * len(self._deltas))
        for index, block in enumerate(view.blocks[first_block:], start=first_block):
            last = index == len(view.blocks) - 1
            at = self.block(block, at, num_queries=1 if last and view.pools_class_token else None)
        if view.norm is not None:
            at = self._norm("norm", view.norm, at)
        at = _each(at, (lambda x: x[:, 0]) if view.pools_class_token else view.pool)
        if view.fc_norm is not None:
            at = self._norm("fc_norm", view.fc_norm, at)
        return self._linear("head", view.head, at)

    def block(self, view: BlockView, at: Stream, *, num_queries: int | None = None) -> Stream:
        """One block. `num_queries` keeps only that many leading rows after attention's keys and values."""
        rows = slice(0, num_queries)
        out = self._attention(view, self._norm(f"{view.name}.norm1", view.norm1, at), rows)
        out = self._linear(f"{view.name}.attn.proj", view.proj, out)
        at = _add(_each(at, lambda x: x[:, rows]), self._layer_scale(f"{view.name}.ls1", view.ls1, out))
        out = self._linear(f"{view.name}.mlp.fc1", view.fc1, self._norm(f"{view.name}.norm2", view.norm2, at))
        out = self._activation(view.act, out)
        if view.mlp_norm is not None:
            out = self._norm(f"{view.name}.mlp.norm", view.mlp_norm, out)
        out = self._linear(f"{view.name}.mlp.fc2", view.fc2, out)
        return _add(at, self._layer_scale(f"{view.name}.ls2", view.ls2, out))

    def _activation(self, act: nn.Module, at: Stream) -> Stream:
        if not self._deltas:
            return Stream(act(at.x), ())
        slope = rules.activation_slope(act, at.x)
        return Stream(act(at.x), tuple(None if dx is None else slope * dx for dx in at.dxs))

    def _attention(self, view: BlockView, at: Stream, rows: slice) -> Stream:
        qkv = _each(
            self._linear(f"{view.name}.attn.qkv", view.qkv, at), lambda x: rules.split_heads(x, 3 * view.num_heads)
        )
        q, k, v = (_each(qkv, lambda x, part=part: x.chunk(3, dim=1)[part]) for part in range(3))
        q = _each(q, lambda x: x[:, :, rows])
        if view.q_norm is not None:
            q = self._norm(f"{view.name}.attn.q_norm", view.q_norm, q)
        if view.k_norm is not None:
            k = self._norm(f"{view.name}.attn.k_norm", view.k_norm, k)
        probs, out = rules.softmax_attention(q.x, k.x, v.x, view.scale)
        douts = tuple(
            rules.attention_tangent(probs, q.x, k.x, v.x, dq, dk, dv, view.scale)  # pyright: ignore[reportArgumentType]
            for dq, dk, dv in zip(q.dxs, k.dxs, v.dxs, strict=True)
        )
        joined = _each(Stream(out, douts), rules.join_heads)
        return joined if view.attn_norm is None else self._norm(f"{view.name}.attn.norm", view.attn_norm, joined)

    def _linear(self, name: str, module: nn.Linear, at: Stream) -> Stream:
        out = module(at.x)
        self._tape(name, module, at.x, out)
        return Stream(out, self._tangents(at, lambda dx: dx @ module.weight.mT, lambda d: d.linear(name, at.x)))

    def _norm(self, name: str, module: nn.LayerNorm, at: Stream) -> Stream:
        n, rstd = rules.normalize(at.x, module.eps)
        out = n * module.weight + module.bias
        self._tape(name, module, n, out)
        return Stream(
            out,
            self._tangents(
                at, lambda dx: module.weight * rules.normalize_tangent(n, rstd, dx), lambda d: d.norm(name, at.x, n)
            ),
        )

    def _layer_scale(self, name: str, module: nn.Module | None, at: Stream) -> Stream:
        if module is None:
            return at
        gamma = module.get_parameter("gamma")
        out = at.x * gamma
        self._tape(name, module, at.x, out)
        return Stream(out, self._tangents(at, lambda dx: dx * gamma, lambda d: d.scale(name, at.x)))

    def _tangents(self, at: Stream, carry, own) -> tuple[Tensor, ...]:
        """Each delta's own contribution plus the incoming tangent, carried through the frozen layer."""
        return tuple(
            own(delta) if dx is None else carry(dx) + own(delta) for delta, dx in zip(self._deltas, at.dxs, strict=True)
        )


def _each(at: Stream, function) -> Stream:
    """Apply a linear function without parameters to primal and tangents alike."""
    return Stream(function(at.x), tuple(None if dx is None else function(dx) for dx in at.dxs))


def _add(left: Stream, right: Stream) -> Stream:
    dxs = tuple(b if a is None else a if b is None else a + b for a, b in zip(left.dxs, right.dxs, strict=True))
    return Stream(left.x + right.x, dxs)
