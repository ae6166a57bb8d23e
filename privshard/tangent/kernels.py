"""GPU kernels of the class-row engine: each reads an example's normalized tokens once.

Counted for B examples, N tokens of width D in two bytes: 2 B N D bytes and 4 B H N D operations a call; the eager form
reads the tokens twice and writes scores between. Shapes: B examples, N tokens, D width, H heads.
"""

# pyright: reportCallIssue=false, reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def covariance_product(
    n1_BND: Tensor,
    probs_BHN: Tensor,
    mean_BHD: Tensor,
    x_HBD: Tensor,
    *,
    gain_D: Tensor | None = None,
    rows_B: Tensor | None = None,
) -> Tensor:
    """Cov_h y_h (H, B, D), y = gain * x: sum_j a_j n_j (y . n_j) - mean (y . mean), in one pass.

    n1_BND: bfloat16 or float16 tokens, contiguous; with `rows_B` example i's are those at rows_B[i], read in place.
    The others: any float type. Products run in the tokens' type and accumulate in fp32; the result has the tokens'
    type. `privshard.tangent.class_row` holds the reference.
    """
    num_heads, num_examples, width = x_HBD.shape
    num_tokens = n1_BND.shape[1]
    out_HBD = torch.empty(x_HBD.shape, dtype=n1_BND.dtype, device=n1_BND.device)
    parts = 4 if width <= 1024 else 8  # of several shapes tried on an H200 these were the fastest by far
    _covariance[(num_examples,)](
        n1_BND,
        n1_BND if rows_B is None else rows_B,
        probs_BHN.contiguous(),
        mean_BHD.contiguous(),
        x_HBD.contiguous(),
        n1_BND if gain_D is None else gain_D.contiguous(),
        out_HBD,
        num_examples,
        num_tokens,
        HAS_ROWS=rows_B is not None,
        HAS_GAIN=gain_D is not None,
        NUM_HEADS=num_heads,
        WIDTH=width,
        HEADS=max(16, triton.next_power_of_2(num_heads)),
        PARTS=parts,
        COLUMNS=max(16, triton.next_power_of_2(triton.cdiv(width, parts))),
        TOKENS=16,
        num_warps=parts,
        num_stages=3,
    )
    return out_HBD


@triton.jit
def _covariance(
    n_ptr,
    rows_ptr,
    probs_ptr,
    mean_ptr,
    x_ptr,
    gain_ptr,
    out_ptr,
    num_examples,
    num_tokens,
    HAS_ROWS: tl.constexpr,
    HAS_GAIN: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program an example: its tokens go by in tiles of TOKENS rows.

    Scores are centred before they weigh the tokens, sum_j a_j n_j (y . n_j - y . mean), so that nothing but the sum is
    held from tile to tile: registers are what limits this kernel, and one that spills takes twice as long. The width is
    cut into PARTS, so that the warps' products with a tile are independent of one another; tensors are (part, head or
    token, column).
    """
    example = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + example).to(tl.int64) if HAS_ROWS else example
    head = tl.arange(0, HEADS)
    token = tl.arange(0, TOKENS)
    column = tl.arange(0, PARTS)[:, None, None] * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]
    inside = (head[None, :, None] < NUM_HEADS) & (column < WIDTH)
    at = head[None, :, None].to(tl.int64) * num_examples * WIDTH + column
    y_PHD = tl.load(x_ptr + example * WIDTH + at, mask=inside, other=0.0)
    if HAS_GAIN:
        gain_PHD = tl.load(gain_ptr + column, mask=column < WIDTH, other=0.0)
        y_PHD = (y_PHD * gain_PHD.to(tl.float32)).to(n_ptr.dtype.element_ty)
    y_PHD = y_PHD.to(n_ptr.dtype.element_ty)
    mean_at = head[None, :, None] * WIDTH + column
    mean_PHD = tl.load(mean_ptr + example * (NUM_HEADS * WIDTH) + mean_at, mask=inside, other=0.0)
    middle_H = tl.sum(tl.sum(y_PHD.to(tl.float32) * mean_PHD.to(tl.float32), axis=2), axis=0)
    total_PHD = tl.zeros((PARTS, HEADS, COLUMNS), dtype=tl.float32)
    tokens_ptr = n_ptr + row * num_tokens * WIDTH
    weights_ptr = probs_ptr + example * NUM_HEADS * num_tokens
    for start in range(0, num_tokens, TOKENS):
        left = num_tokens - start
        n_PND = tl.load(
            tokens_ptr + start * WIDTH + (token[None, :, None] * WIDTH + column),
            mask=(token[None, :, None] < left) & (column < WIDTH),
            other=0.0,
        )
        a_HN = tl.load(
            weights_ptr + start + (head[:, None] * num_tokens + token[None, :]),
            mask=(head[:, None] < NUM_HEADS) & (token[None, :] < left),
            other=0.0,
        )
        score_HN = tl.sum(tl.dot(y_PHD, tl.trans(n_PND, (0, 2, 1))), axis=0) - middle_H[:, None]
        weights_HN = (a_HN.to(tl.float32) * score_HN).to(n_PND.dtype)
        every_PHN = tl.broadcast_to(weights_HN[None, :, :], (PARTS, HEADS, TOKENS))
        total_PHD = tl.dot(every_PHN, n_PND, acc=total_PHD)
    tl.store(out_ptr + example * WIDTH + at, total_PHD.to(out_ptr.dtype.element_ty), mask=inside)
