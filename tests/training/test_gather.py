"""Rows on their way to the device that computes, and what was learnt on its way back."""

import pytest
import torch

from privshard.training.gather import download


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_was_learnt_arrives_whole_and_no_longer_changes(device, dtype):
    learnt = {"weight": torch.randn(300, 200, device=device).to(dtype), "bias": torch.randn(7, device=device).to(dtype)}
    expected = {name: tensor.float().cpu().clone() for name, tensor in learnt.items()}
    found = download(learnt)
    for tensor in learnt.values():
        tensor.zero_()
    assert {name: (tensor.dtype, tensor.device.type) for name, tensor in found.items()} == dict.fromkeys(
        learnt, (torch.float32, "cpu")
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert download({}) == {}
