"""The distillation loss against its formula, number by number."""

from __future__ import annotations

import math

import pytest
import torch

from privshard.decomposition.loss import distillation_loss


def softmax(row, temperature):
    values = [math.exp(x / temperature) for x in row]
    return [value / sum(values) for value in values]


def test_it_is_the_formula():
    logits, teacher, labels = [[0.5, -1.0, 2.0], [1.0, 0.0, 0.0]], [[1.0, 1.0, -2.0], [0.3, 0.2, 0.1]], [2, 1]
    expected = 0.0
    for z, t, y in zip(logits, teacher, labels, strict=True):
        p, q = softmax(t, 2.0), softmax(z, 2.0)
        expected -= math.log(softmax(z, 1.0)[y])
        expected += 0.7 * 4.0 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = distillation_loss(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(teacher), weight=0.7, temperature=2.0
    )
    assert found.item() == pytest.approx(expected / 2, rel=1e-5)


def test_without_a_teacher_it_is_cross_entropy():
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    found = distillation_loss(logits, labels, None, weight=1.0, temperature=1.0)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, labels))
