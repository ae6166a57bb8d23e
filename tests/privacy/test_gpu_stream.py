"""The GPU's stream draws the CPU's numbers."""

from __future__ import annotations

import pytest
import torch

from privshard.privacy.stream import ChaChaStream, insecure_key

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("sizes", [(1, 7, 8, 100_003), (65_537, 3, 1_000_000)])
def test_both_devices_draw_the_same_numbers_and_move_on_alike(sizes):
    key = insecure_key(3, shard=1, attempt=2)
    cpu, gpu = (ChaChaStream(key, purpose="noise") for _ in range(2))
    for size in sizes:
        expected, found = cpu.normal(size), gpu.normal(size, device="cuda")
        assert found.is_cuda
        assert cpu.position == gpu.position
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-12, atol=1e-12)


def test_the_block_counter_goes_past_32_bits():
    key = insecure_key(0, shard=0, attempt=0)
    first = (1 << 32) - 2
    cpu, gpu = (ChaChaStream(key, purpose="noise", position=first) for _ in range(2))
    torch.testing.assert_close(gpu.normal(64, device="cuda").cpu(), cpu.normal(64), rtol=1e-12, atol=1e-12)
