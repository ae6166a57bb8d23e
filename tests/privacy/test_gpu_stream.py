"""The GPU's stream draws the CPU's numbers: on a GPU, and interpreted where there is none."""

from __future__ import annotations

import math

import pytest
import torch
from interpreted import interpreted

from privshard.privacy.stream import ChaChaStream, insecure_key

LATE = (1 << 32) - 2
"""A position at which the block counter passes 32 bits."""


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(1, 7, 8, 100_003), (65_537, 3, 1_000_000)])
def test_both_devices_draw_the_same_numbers_and_move_on_alike(sizes):
    key = insecure_key(3, shard=1, attempt=2)
    cpu, gpu = (ChaChaStream(key, purpose="noise") for _ in range(2))
    for size in sizes:
        expected, found = cpu.normal(size), gpu.normal(size, device="cuda")
        assert found.is_cuda
        assert cpu.position == gpu.position
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
def test_the_block_counter_goes_past_32_bits():
    key = insecure_key(0, shard=0, attempt=0)
    cpu, gpu = (ChaChaStream(key, purpose="noise", position=LATE) for _ in range(2))
    torch.testing.assert_close(gpu.normal(64, device="cuda").cpu(), cpu.normal(64), rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_devices_add_the_same_noise(dtype):
    total = torch.randn(3, 1_001, generator=torch.Generator().manual_seed(0)).to(dtype)
    total[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    cpu, gpu = (ChaChaStream(insecure_key(3, shard=1, attempt=2), purpose="noise") for _ in range(2))
    for _ in range(2):
        expected, found = cpu.add_normal(total, std=0.3), gpu.add_normal(total.cuda(), std=0.3)
        assert found.dtype == expected.dtype == dtype
        assert cpu.position == gpu.position
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


def test_interpreted():
    interpreted("test_gpu_stream", "check_interpreted", beside=__file__)


def check_interpreted() -> None:
    """The kernel in Triton's interpreter, at a counter that passes 32 bits."""
    from privshard.privacy import gpu_stream

    key = insecure_key(3, shard=1, attempt=2)
    for n in (1, 7, 8, 1_003):
        stream = ChaChaStream(key, purpose="noise", position=LATE)
        words = gpu_stream.upload(stream._key, torch.device("cpu"))
        drawn = gpu_stream.normal(words, block=LATE, n=n)
        total = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        total[0] = math.nan
        added = gpu_stream.add_normal(words, total, block=LATE, std=0.3)
        torch.testing.assert_close(drawn, stream.normal(n), rtol=1e-14, atol=1e-14)
        stream.position = LATE
        torch.testing.assert_close(added, stream.add_normal(total, std=0.3), rtol=1e-14, atol=1e-14)
