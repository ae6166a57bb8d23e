"""Dual rules: how each layer carries a tangent beside its primal. Pure functions of tensors.

B batch, N tokens, D width, H heads, E head width. Source: math.md section 1 is derived from "Tangent Transformers for
Composition, Privacy and Removal" (arXiv 2307.08122), section 3.1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Layer normalization without its affine part: (x - mean) / s with s = sqrt(var + eps); returns it and 1 / s.

    Half-precision input is normalized in fp32 and rounded once.
    """
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    centered = wide - wide.mean(dim=-1, keepdim=True)
    rstd = torch.rsqrt(centered.square().mean(dim=-1, keepdim=True) + eps)
    return (centered * rstd).to(x.dtype), rstd.to(x.dtype)


def normalize_tangent(n: Tensor, rstd: Tensor, dx: Tensor) -> Tensor:
    """dn = (dx - mean(dx) - n mean(n dx)) / s. Its own transpose, so it carries cotangents back as well."""
    return rstd * (dx - dx.mean(dim=-1, keepdim=True) - n * (n * dx).mean(dim=-1, keepdim=True))


def activation_slope(act: nn.Module, x: Tensor) -> Tensor:
    """The derivative of an elementwise activation at x; for GELU, Phi(x) + x phi(x), which is 1/2 at 0."""
    if isinstance(act, nn.GELU) and act.approximate == "none":
        cdf = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
        return cdf + x * torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    return torch.func.jvp(act, (x,), (torch.ones_like(x),))[1]


def softmax_attention(
    q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, scale: float, *, num_keys: int | None = None
) -> tuple[Tensor, Tensor]:
    """Attention probabilities (B, H, queries, keys) and their output (B, H, queries, E).

    Keys from `num_keys` on have probability exactly 0. Tangents and cotangents are multiplied by probabilities, so they
    need no mask: through those keys, exactly 0 goes either way.
    """
    scores = q_BHNE @ k_BHNE.mT
    num_masked = 0 if num_keys is None else scores.shape[-1] - num_keys
    if num_masked:
        mask_N = F.pad(scores.new_zeros(scores.shape[-1] - num_masked), (0, num_masked), value=-math.inf)
        scores = torch.add(mask_N, scores, alpha=scale)  # in the pass that scales
    else:
        scores = scale * scores
    probs = torch.softmax(scores, dim=-1).to(q_BHNE.dtype)
    return probs, probs @ v_BHNE


def attention_tangent(
    probs: Tensor, q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, scale: float
) -> Tensor:
    """d(output) = dS V + S dV, dS = S * (dA - rowsum(S * dA)), dA = scale (dQ K^T + Q dK^T)."""
    dscores = scale * (dq @ k.mT + q @ dk.mT)
    dprobs = probs * (dscores - (probs * dscores).sum(dim=-1, keepdim=True))
    return dprobs @ v + probs @ dv


def attention_cotangent(
    probs: Tensor, q: Tensor, k: Tensor, v: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose of `attention_tangent`: from the cotangent of attention's output to those of q, k and v."""
    bprobs = b @ v.mT
    bscores = scale * probs * (bprobs - (probs * bprobs).sum(dim=-1, keepdim=True))
    return bscores @ k, bscores.mT @ q, probs.mT @ b


def split_heads(x_BNF: Tensor, num_heads: int) -> Tensor:
    """(B, N, H * E) -> (B, H, N, E)."""
    return x_BNF.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x_BHNE: Tensor) -> Tensor:
    """(B, H, N, E) -> (B, N, H * E)."""
    return x_BHNE.transpose(1, 2).flatten(2)
