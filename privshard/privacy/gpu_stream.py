"""ChaCha20 on the GPU: the Gaussians of `privshard.privacy.stream`, drawn where they are needed."""

# pyright: reportCallIssue=false, reportAssignmentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import struct

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCKS = 128


def upload(key: bytes, device: torch.device) -> Tensor:
    """The key's eight words on `device`; keep it with the stream, so that it goes when the stream does."""
    return torch.tensor(struct.unpack("<8i", key), dtype=torch.int32, device=device)


def normal(words: Tensor, *, block: int, n: int) -> Tensor:
    """The same `n` standard Gaussians that the CPU's stream draws from 64-byte block number `block` on; float64.

    words: the key, uploaded. Key stream, uniforms and Box-Muller are those of `ChaChaStream.normal`, in double
    precision, so the numbers agree to the rounding of logarithm and cosine.
    """
    out = torch.zeros(n, dtype=torch.float64, device=words.device)
    return add_normal(words, out, block=block, std=1.0)


def add_normal(words: Tensor, total: Tensor, *, block: int, std: float) -> Tensor:
    """`total` plus std times those Gaussians, added in double precision and rounded once to the type of `total`.

    One pass: `total` is read and the result written, noise is never in memory. Entries that are not finite count as 0.
    """
    total = total.contiguous()
    out, n = torch.empty_like(total), total.numel()
    high = float(np.float32(std))  # numbers are passed as fp32: two of them hold a double to 2^-48
    grid = (triton.cdiv(triton.cdiv(n, 8), _BLOCKS),)
    _add_normal[grid](words, total, out, high, std - high, block, n, BLOCKS=_BLOCKS, num_warps=4)
    return out


@triton.jit
def _quarter(a, b, c, d):
    a = a + b
    d = d ^ a
    d = (d << 16) | (d >> 16)
    c = c + d
    b = b ^ c
    b = (b << 12) | (b >> 20)
    a = a + b
    d = d ^ a
    d = (d << 8) | (d >> 24)
    c = c + d
    b = b ^ c
    b = (b << 7) | (b >> 25)
    return a, b, c, d


@triton.jit
def _pair(total_ptr, out_ptr, std, at, n, low0, high0, low1, high1):
    """Two 64-bit words to two Gaussians, added at positions `at` and `at + 1`."""
    unit: tl.constexpr = 1.1102230246251565e-16  # 2^-53
    turn: tl.constexpr = 6.283185307179586
    first = (high0.to(tl.uint64) << 32) | low0.to(tl.uint64)
    second = (high1.to(tl.uint64) << 32) | low1.to(tl.uint64)
    u0 = ((first >> 11).to(tl.float64) + 1.0) * unit
    u1 = ((second >> 11).to(tl.float64) + 1.0) * unit
    radius = tl.sqrt(-2.0 * tl.log(u0))
    _add(total_ptr, out_ptr, at, n, std * radius * tl.cos(turn * u1))
    _add(total_ptr, out_ptr, at + 1, n, std * radius * tl.sin(turn * u1))


@triton.jit
def _add(total_ptr, out_ptr, at, n, noise):
    total = tl.load(total_ptr + at, mask=at < n, other=0.0).to(tl.float64)
    total = tl.where(tl.abs(total) < float("inf"), total, 0.0)  # false for NaN as well
    tl.store(out_ptr + at, (total + noise).to(out_ptr.dtype.element_ty), mask=at < n)


@triton.jit
def _add_normal(key_ptr, total_ptr, out_ptr, std_high, std_low, first_block, n, BLOCKS: tl.constexpr):
    std = tl.zeros((BLOCKS,), dtype=tl.float64) + std_high + std_low
    lane = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS).to(tl.int64)
    counter = (lane + first_block).to(tl.uint64)
    zero = tl.zeros((BLOCKS,), dtype=tl.uint32)
    c0 = zero + 0x61707865
    c1 = zero + 0x3320646E
    c2 = zero + 0x79622D32
    c3 = zero + 0x6B206574
    k0 = zero + tl.load(key_ptr + 0).to(tl.uint32, bitcast=True)
    k1 = zero + tl.load(key_ptr + 1).to(tl.uint32, bitcast=True)
    k2 = zero + tl.load(key_ptr + 2).to(tl.uint32, bitcast=True)
    k3 = zero + tl.load(key_ptr + 3).to(tl.uint32, bitcast=True)
    k4 = zero + tl.load(key_ptr + 4).to(tl.uint32, bitcast=True)
    k5 = zero + tl.load(key_ptr + 5).to(tl.uint32, bitcast=True)
    k6 = zero + tl.load(key_ptr + 6).to(tl.uint32, bitcast=True)
    k7 = zero + tl.load(key_ptr + 7).to(tl.uint32, bitcast=True)
    n0 = counter.to(tl.uint32)
    n1 = (counter >> 32).to(tl.uint32)
    x0, x1, x2, x3, x4, x5, x6, x7 = c0, c1, c2, c3, k0, k1, k2, k3
    x8, x9, x10, x11, x12, x13, x14, x15 = k4, k5, k6, k7, n0, n1, zero, zero
    for _ in tl.static_range(10):
        x0, x4, x8, x12 = _quarter(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter(x3, x4, x9, x14)
    at = lane * 8
    _pair(total_ptr, out_ptr, std, at, n, x0 + c0, x1 + c1, x2 + c2, x3 + c3)
    _pair(total_ptr, out_ptr, std, at + 2, n, x4 + k0, x5 + k1, x6 + k2, x7 + k3)
    _pair(total_ptr, out_ptr, std, at + 4, n, x8 + k4, x9 + k5, x10 + k6, x11 + k7)
    _pair(total_ptr, out_ptr, std, at + 6, n, x12 + n0, x13 + n1, x14, x15)
