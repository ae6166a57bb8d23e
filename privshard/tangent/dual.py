"""The dual stream of stem, blocks and head: the primal once, any number of tangents beside it, cotangents back.

B batch, N tokens, D width, H heads, E head width, C classes, T patches, P numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privshard.models.stem import StemView
from privshard.models.vit import BlockView, ViTView
from privshard.tangent import rules
from privshard.tangent.padding import lengthened, padded_length


class Delta(Protocol):
    """The trainable displacement, as the ways in which a layer's own parameters act on its primal input."""

    def linear(self, name: str, x: Tensor) -> Tensor:
        """dW x + db."""
        ...

    def norm(self, name: str, x: Tensor, n: Tensor) -> Tensor:
        """dg * n + dc, for the layer normalization of x whose normalized value is n."""
        ...

    def scale(self, name: str, x: Tensor) -> Tensor:
        """dgamma * x."""
        ...

    def added(self, name: str, like_BMD: Tensor) -> Tensor:
        """dp (1 or B, M, D), of a parameter that is added to rows, in the type of `like_BMD`."""
        ...


@dataclass(frozen=True)
class StoredDelta:
    """A displacement held as named tensors. Its head acts on the feature minus `head_center_D`."""

    tensors: Mapping[str, Tensor]
    head_center_D: Tensor | float = 0.0

    def linear(self, name: str, x: Tensor) -> Tensor:
        if name == "head":
            x = x - self.head_center_D
        return self._affine(x @ self.tensors[f"{name}.weight"].to(x.dtype).flatten(1).mT, name, x.dtype)

    def norm(self, name: str, x: Tensor, n: Tensor) -> Tensor:
        return self._affine(n * self.tensors[f"{name}.weight"].to(n.dtype), name, n.dtype)

    def scale(self, name: str, x: Tensor) -> Tensor:
        return x * self.tensors[f"{name}.gamma"].to(x.dtype)

    def added(self, name: str, like_BMD: Tensor) -> Tensor:
        return self.tensors[name].to(like_BMD.dtype)

    def _affine(self, product: Tensor, name: str, dtype) -> Tensor:
        bias = self.tensors.get(f"{name}.bias")
        return product if bias is None else product + bias.to(dtype)


class Collector(Protocol):
    """Is shown every parameter as cotangents come back: the layer, what its parameter multiplies, the cotangent of
    its output. A parameter that is added to rows is its own layer, and multiplies nothing (None)."""

    def __call__(self, name: str, module: nn.Module | nn.Parameter, factor: Tensor | None, back: Tensor) -> None: ...


Pull = Callable[[Tensor, Collector], Tensor]
"""(cotangent of a stage's output, who collects) -> cotangent of its input."""


@dataclass(frozen=True)
class Stream:
    """A point of the network: the primal value, and one tangent for each delta (None where it is zero)."""

    x: Tensor
    dxs: tuple[Tensor | None, ...]


class Dual:
    """Evaluates layers on streams, and says of each how cotangents go back. `deltas` may be empty: the plain network.
    multiple: what the number of tokens in the blocks is padded to a multiple of; it changes nothing but rounding, and
    collectors see the longer factors, with cotangents of exactly zero behind.

    Nothing here is recorded by autograd unless a delta's own tensors ask for it.
    """

    def __init__(self, deltas: Sequence[Delta], *, multiple: int = 1) -> None:
        self._deltas = deltas
        self._multiple = multiple

    def start(self, x: Tensor) -> Stream:
        """A value on which no delta has acted yet."""
        return Stream(x, (None,) * len(self._deltas))

    def evaluate(
        self, view: ViTView, x: Tensor, *, first_block: int, stem: StemView | None = None
    ) -> tuple[Stream, Tensor, Pull]:
        """What `tail` gives, from tokens that enter block `first_block`; with a stem, from patches that enter it."""
        if stem is None:
            return self.tail(view, x, first_block=first_block)
        tokens, pull_stem = self.stem(stem, x)
        out, feature_BD, pull_tail = self.tail(view, tokens, first_block=0)

        def pull(b_BC: Tensor, collect: Collector) -> Tensor:
            return pull_stem(pull_tail(b_BC, collect), collect)

        return out, feature_BD, pull

    def stem(self, view: StemView, patches_BTP: Tensor) -> tuple[Stream, Pull]:
        """From patches to the tokens (B, N, D) that enter the first block. The pull ends at the parameters: what it
        returns is the cotangent of the embedded patches."""
        at, pull_proj = self._linear("patch_embed.proj", view.proj, self.start(patches_BTP), to_input=False)
        pulls = [pull_proj]
        if view.patch_norm is not None:
            at, pull = self._norm("patch_embed.norm", view.patch_norm, at)
            pulls.append(pull)
        at = _each(at, lambda x_BTD: F.pad(x_BTD, (0, 0, view.num_prefix, 0)))
        for part in view.added:
            rows = (0, 0, part.first, at.x.shape[1] - part.first - part.value.shape[1])
            like_BMD = part.value.to(at.x.dtype).expand(at.x.shape[0], -1, -1)
            dxs = self._tangents(at, lambda dx: dx, lambda d, p=part, r=rows, v=like_BMD: F.pad(d.added(p.name, v), r))
            at = Stream(at.x + F.pad(like_BMD, rows), dxs)

        def pull_added(b_BND: Tensor, collect: Collector) -> Tensor:
            for part in view.added:
                collect(part.name, part.value, None, b_BND[:, part.first : part.first + part.value.shape[1]])
            return b_BND[:, view.num_prefix :]

        pulls.append(pull_added)
        if view.norm_pre is not None:
            at, pull = self._norm("norm_pre", view.norm_pre, at)
            pulls.append(pull)
        return at, _chain(pulls)

    def tail(self, view: ViTView, at: Tensor | Stream, *, first_block: int) -> tuple[Stream, Tensor, Pull]:
        """From the tokens (B, N, D) that enter block `first_block` to the logits (B, C) and their tangents; the feature
        (B, D) that enters the head; the pull from logits to tokens."""
        at = self.start(at) if isinstance(at, Tensor) else at
        pulls: list[Pull] = []
        num_tokens = at.x.shape[1]
        length = padded_length(num_tokens, self._multiple)
        if length > num_tokens:
            at = _each(at, lambda x: lengthened(x, length))
            pulls.append(lambda b_BND, _: b_BND[:, :num_tokens])  # what comes back for the others is zero
        for index, block in enumerate(view.blocks[first_block:], start=first_block):
            last = index == len(view.blocks) - 1
            at, pull = self.block(block, at, num_queries=view.num_read if last else None, num_keys=num_tokens)
            pulls.append(pull)
        if at.x.shape[1] > num_tokens:
            at = _each(at, lambda x: x[:, :num_tokens])
            pulls.append(lambda b_BND, _: _padded(b_BND, length))
        if view.norm is not None:
            at, pull = self._norm("norm", view.norm, at)
            pulls.append(pull)
        if view.head_dist is not None:
            at, feature_BD, pull = self._two_heads(view.head, view.head_dist, at)
            return at, feature_BD, _chain([*pulls, pull])
        num_rows = at.x.shape[1]
        at = _each(at, (lambda x: x[:, 0]) if view.pools_class_token else view.pool)
        pulls.append(lambda b_BD, _: view.unpool(b_BD, num_tokens=num_rows))
        if view.fc_norm is not None:
            at, pull = self._norm("fc_norm", view.fc_norm, at)
            pulls.append(pull)
        feature_BD = at.x
        at, pull = self._linear("head", view.head, at)
        return at, feature_BD, _chain([*pulls, pull])

    def _two_heads(self, head: nn.Linear, head_dist: nn.Linear, at: Stream) -> tuple[Stream, Tensor, Pull]:
        """The mean of what one head says of row 0 and another of row 1, as timm's distilled models have it; the mean
        of both rows is the feature."""
        feature_BD = at.x.mean(dim=1)
        one, pull_one = self._linear("head", head, _each(at, lambda x: x[:, 0]))
        two, pull_two = self._linear("head_dist", head_dist, _each(at, lambda x: x[:, 1]))

        def pull(b_BC: Tensor, collect: Collector) -> Tensor:
            return torch.stack([pull_one(b_BC / 2, collect), pull_two(b_BC / 2, collect)], dim=1)

        return _each(_add(one, two), lambda logits_BC: logits_BC / 2), feature_BD, pull

    def block(
        self, view: BlockView, at: Stream, *, num_queries: int | None = None, num_keys: int | None = None
    ) -> tuple[Stream, Pull]:
        """One block. `num_queries` keeps only that many leading rows after attention's keys and values; rows from
        `num_keys` on are padding, to which none attends."""
        rows, num_tokens = slice(0, num_queries), at.x.shape[1]
        out, norm1 = self._norm(f"{view.name}.norm1", view.norm1, at)
        out, attention = self._attention(view, out, rows, num_keys)
        out, proj = self._linear(f"{view.name}.attn.proj", view.proj, out)
        out, ls1 = self._layer_scale(f"{view.name}.ls1", view.ls1, out)
        at = _add(_each(at, lambda x: x[:, rows]), out)
        out, norm2 = self._norm(f"{view.name}.norm2", view.norm2, at)
        out, fc1 = self._linear(f"{view.name}.mlp.fc1", view.fc1, out)
        out, act = self._activation(view.act, out)
        mlp = [norm2, fc1, act]
        if view.mlp_norm is not None:
            out, mlp_norm = self._norm(f"{view.name}.mlp.norm", view.mlp_norm, out)
            mlp.append(mlp_norm)
        out, fc2 = self._linear(f"{view.name}.mlp.fc2", view.fc2, out)
        out, ls2 = self._layer_scale(f"{view.name}.ls2", view.ls2, out)
        back_mlp, back_attention = _chain([*mlp, fc2, ls2]), _chain([norm1, attention, proj, ls1])

        def pull(b: Tensor, collect: Collector) -> Tensor:
            b = b + back_mlp(b, collect)
            return _padded(b, num_tokens) + back_attention(b, collect)

        return _add(at, out), pull

    def _activation(self, act: nn.Module, at: Stream) -> tuple[Stream, Pull]:
        x = at.x
        tangents = ()
        if self._deltas:
            slope = rules.activation_slope(act, x)
            tangents = tuple(None if dx is None else slope * dx for dx in at.dxs)
        return Stream(act(x), tangents), lambda b, _: b * rules.activation_slope(act, x)

    def _attention(self, view: BlockView, at: Stream, rows: slice, num_keys: int | None) -> tuple[Stream, Pull]:
        qkv, pull_qkv = self._linear(f"{view.name}.attn.qkv", view.qkv, at)
        qkv = _each(qkv, lambda x: rules.split_heads(x, 3 * view.num_heads))
        q, k, v = (_each(qkv, lambda x, part=part: x.chunk(3, dim=1)[part]) for part in range(3))
        q = _each(q, lambda x: x[:, :, rows])
        pull_q = pull_k = None
        if view.q_norm is not None:
            q, pull_q = self._norm(f"{view.name}.attn.q_norm", view.q_norm, q)
        if view.k_norm is not None:
            k, pull_k = self._norm(f"{view.name}.attn.k_norm", view.k_norm, k)
        probs, out = rules.softmax_attention(q.x, k.x, v.x, view.scale, num_keys=num_keys)
        douts = tuple(
            rules.attention_tangent(probs, q.x, k.x, v.x, dq, dk, dv, view.scale)  # pyright: ignore[reportArgumentType]
            for dq, dk, dv in zip(q.dxs, k.dxs, v.dxs, strict=True)
        )
        joined, pull_norm = _each(Stream(out, douts), rules.join_heads), None
        if view.attn_norm is not None:
            joined, pull_norm = self._norm(f"{view.name}.attn.norm", view.attn_norm, joined)
        num_tokens, x_q, x_k, x_v = at.x.shape[1], q.x, k.x, v.x

        def pull(b: Tensor, collect: Collector) -> Tensor:
            b = b if pull_norm is None else pull_norm(b, collect)
            bq, bk, bv = rules.attention_cotangent(
                probs, x_q, x_k, x_v, rules.split_heads(b, view.num_heads), view.scale
            )
            bq = bq if pull_q is None else pull_q(bq, collect)
            bk = bk if pull_k is None else pull_k(bk, collect)
            bq_BNHE, bk_BNHE, bv_BNHE = (x.transpose(1, 2) for x in (bq, bk, bv))
            joint = torch.cat([_padded(bq_BNHE, num_tokens), bk_BNHE, bv_BNHE], dim=2)
            return pull_qkv(joint.flatten(2), collect)

        return joined, pull

    def _linear(
        self, name: str, module: nn.Linear | nn.Conv2d, at: Stream, *, to_input: bool = True
    ) -> tuple[Stream, Pull]:
        x, weight = at.x, module.weight.flatten(1)
        dxs = self._tangents(at, lambda dx: dx @ weight.mT, lambda d: d.linear(name, x))

        def pull(b: Tensor, collect: Collector) -> Tensor:
            collect(name, module, x, b)
            return b @ weight if to_input else b

        return Stream(F.linear(x, weight, module.bias), dxs), pull

    def _norm(self, name: str, module: nn.LayerNorm, at: Stream) -> tuple[Stream, Pull]:
        n, rstd = rules.normalize(at.x, module.eps)
        weight, bias = module.weight.to(n.dtype), module.bias.to(n.dtype)
        dxs = self._tangents(
            at, lambda dx: weight * rules.normalize_tangent(n, rstd, dx), lambda d: d.norm(name, at.x, n)
        )

        def pull(b: Tensor, collect: Collector) -> Tensor:
            collect(name, module, n, b)
            return rules.normalize_tangent(n, rstd, b * weight)

        return Stream(n * weight + bias, dxs), pull

    def _layer_scale(self, name: str, module: nn.Module | None, at: Stream) -> tuple[Stream, Pull]:
        if module is None:
            return at, lambda b, _: b
        gamma, x = module.get_parameter("gamma").to(at.x.dtype), at.x

        def pull(b: Tensor, collect: Collector) -> Tensor:
            collect(name, module, x, b)
            return b * gamma

        return Stream(x * gamma, self._tangents(at, lambda dx: dx * gamma, lambda d: d.scale(name, x))), pull

    def _tangents(self, at: Stream, carry, own) -> tuple[Tensor, ...]:
        """Each delta's own contribution plus the incoming tangent, carried through the frozen layer."""
        return tuple(
            own(delta) if dx is None else carry(dx) + own(delta) for delta, dx in zip(self._deltas, at.dxs, strict=True)
        )


def _chain(pulls: Sequence[Pull]) -> Pull:
    """The pull through stages that follow one another."""

    def pull(b: Tensor, collect: Collector) -> Tensor:
        for stage in reversed(pulls):
            b = stage(b, collect)
        return b

    return pull


def _padded(b_BMX: Tensor, num_tokens: int) -> Tensor:
    """Zeros for the rows that a stage dropped, (B, M, ...) -> (B, N, ...)."""
    missing = num_tokens - b_BMX.shape[1]
    return torch.cat([b_BMX, b_BMX.new_zeros(len(b_BMX), missing, *b_BMX.shape[2:])], dim=1) if missing else b_BMX


def _each(at: Stream, function) -> Stream:
    """Apply a linear function without parameters to primal and tangents alike."""
    return Stream(function(at.x), tuple(None if dx is None else function(dx) for dx in at.dxs))


def _add(left: Stream, right: Stream) -> Stream:
    dxs = tuple(b if a is None else a if b is None else a + b for a, b in zip(left.dxs, right.dxs, strict=True))
    return Stream(left.x + right.x, dxs)
