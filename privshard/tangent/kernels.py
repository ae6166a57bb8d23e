"""GPU kernels of the class-row engine: each reads an example's normalized tokens once.

Counted for B examples, N tokens of width D in two bytes: 2 B N D bytes and 4 B H N D operations a call; the eager form
reads the tokens twice and writes scores between. Shapes: B examples, N tokens, D width, H heads.
"""

# pyright: reportCallIssue=false, reportAssignmentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def covariance_product(n1_BND: Tensor, probs_BHN: Tensor, mean_BHD: Tensor, x_BHD: Tensor) -> Tensor:
    """Cov_h x_h (B, H, D) in fp32: sum_j a_j n_j (x . n_j) - mean (sum_j a_j (x . n_j)), in one pass over the tokens.

    n1_BND: bfloat16 or float16 tokens, contiguous. The others: any float type. Products run in the tokens' type and
    accumulate in fp32; `privshard.tangent.class_row` holds the reference.
    """
    num_examples, num_tokens, width = n1_BND.shape
    num_heads = x_BHD.shape[1]
    out_BHD = torch.empty(num_examples, num_heads, width, dtype=torch.float32, device=n1_BND.device)
    _covariance[(num_examples,)](
        n1_BND,
        probs_BHN.to(torch.float32).contiguous(),
        mean_BHD.to(torch.float32).contiguous(),
        x_BHD.to(n1_BND.dtype).contiguous(),
        out_BHD,
        num_tokens,
        NUM_HEADS=num_heads,
        WIDTH=width,
        HEADS=max(16, triton.next_power_of_2(num_heads)),
        COLUMNS=triton.next_power_of_2(width),
        TOKENS=32 if width > 512 else 64,
        num_warps=8,
        num_stages=2,
    )
    return out_BHD


@triton.jit
def _covariance(
    n_ptr,
    probs_ptr,
    mean_ptr,
    x_ptr,
    out_ptr,
    num_tokens,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program an example: its tokens go by in tiles of TOKENS rows."""
    example = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)
    column = tl.arange(0, COLUMNS)
    inside = (head[:, None] < NUM_HEADS) & (column[None, :] < WIDTH)
    at = example * NUM_HEADS * WIDTH + head[:, None] * WIDTH + column[None, :]
    x_HD = tl.load(x_ptr + at, mask=inside, other=0.0)
    total_HD = tl.zeros((HEADS, COLUMNS), dtype=tl.float32)
    weight_H = tl.zeros((HEADS,), dtype=tl.float32)
    for start in range(0, num_tokens, TOKENS):
        token = start + tl.arange(0, TOKENS)
        n_ND = tl.load(
            n_ptr + example * num_tokens * WIDTH + token[:, None] * WIDTH + column[None, :],
            mask=(token[:, None] < num_tokens) & (column[None, :] < WIDTH),
            other=0.0,
        )
        a_HN = tl.load(
            probs_ptr + example * NUM_HEADS * num_tokens + head[:, None] * num_tokens + token[None, :],
            mask=(head[:, None] < NUM_HEADS) & (token[None, :] < num_tokens),
            other=0.0,
        )
        weights_HN = a_HN * tl.dot(x_HD, tl.trans(n_ND))
        weight_H += tl.sum(weights_HN, axis=1)
        total_HD = tl.dot(weights_HN.to(n_ND.dtype), n_ND, acc=total_HD)
    mean_HD = tl.load(mean_ptr + at, mask=inside, other=0.0)
    tl.store(out_ptr + at, total_HD - mean_HD * weight_H[:, None], mask=inside)
