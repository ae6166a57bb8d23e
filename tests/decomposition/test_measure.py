"""What models cost: memory against a count by hand, accuracy against a loop."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from privshard.decomposition.measure import accuracy, latency_ms, memory_bytes


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, 10))

    def forward(self, x):
        first = x * 2
        second = first @ self.weight
        del first
        rows = second.relu_().sum(1)
        both = torch.cat([second, second])
        return rows, both.view(-1)[:3]


def test_memory_is_weights_images_and_the_most_alive_at_once():
    by_hand = 4 * (10 * 10 + 1000 * 10 + 1000 * 10 + 1000 + 2000 * 10)
    assert memory_bytes(Steps(), torch.zeros(1000, 10)) == by_hand


def test_accuracy_counts_rows_not_batches():
    model = nn.Identity()
    batches = [(torch.eye(3), torch.tensor([0, 1, 0])), (torch.eye(3)[:1], torch.tensor([0]))]
    assert accuracy(model, batches) == pytest.approx(3 / 4)


def test_latency_is_that_of_one_pass_over_what_it_was_given():
    calls = []

    class Model(nn.Module):
        def forward(self, x):
            calls.append(x.shape)
            time.sleep(0.002)
            return x

    assert latency_ms(Model(), torch.zeros(1, 3), at_least_s=0.02) >= 2
    assert set(calls) == {(1, 3)}
    assert len(calls) >= 10
