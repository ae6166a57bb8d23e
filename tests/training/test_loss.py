"""Losses by their definitions, and their gradients by autograd."""

from __future__ import annotations

import math

import pytest
import torch

from privshard.training.loss import cotangent, losses

LOSSES = ("cross_entropy", "square")


def make_logits() -> tuple[torch.Tensor, torch.Tensor]:
    logits_BC = 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return logits_BC, torch.tensor([0, 1, 2, 3, 0, 2])


def test_losses_are_their_definitions():
    logits_BC, labels_B = make_logits()
    for row, label, entropy, square in zip(
        logits_BC.tolist(),
        labels_B.tolist(),
        losses("cross_entropy", logits_BC, labels_B).tolist(),
        losses("square", logits_BC, labels_B).tolist(),
        strict=True,
    ):
        assert entropy == pytest.approx(math.log(sum(math.exp(value) for value in row)) - row[label], rel=1e-12)
        wanted = [15.0 if place == label else 0.0 for place in range(4)]
        assert square == pytest.approx(sum((f - w) ** 2 for f, w in zip(row, wanted, strict=True)) / 4, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_cotangents_are_the_gradients_of_each_examples_loss(loss):
    logits_BC, labels_B = make_logits()
    logits_BC.requires_grad_()
    (expected,) = torch.autograd.grad(losses(loss, logits_BC, labels_B).sum(), logits_BC)
    torch.testing.assert_close(cotangent(loss, logits_BC.detach(), labels_B), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_example_does_not_depend_on_its_batch(loss):
    logits_BC, labels_B = make_logits()
    alone = torch.cat([cotangent(loss, logits_BC[i : i + 1], labels_B[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(cotangent(loss, logits_BC, labels_B), alone, rtol=1e-14, atol=0)


def test_cross_entropy_pulls_along_differences_of_classes_and_survives_large_logits():
    logits_BC, labels_B = make_logits()
    assert cotangent("cross_entropy", logits_BC, labels_B).sum(1).abs().max() < 1e-15
    huge = torch.tensor([[1e4, -1e4]])
    assert cotangent("cross_entropy", huge, torch.tensor([1])).tolist() == [[1.0, -1.0]]
    assert losses("cross_entropy", huge, torch.tensor([1])).tolist() == [2e4]


@pytest.mark.parametrize("loss", LOSSES)
def test_types_and_empty_batches(loss):
    for dtype in (torch.float32, torch.float64):
        assert cotangent(loss, torch.zeros(2, 3, dtype=dtype), torch.tensor([0, 1])).dtype == dtype
    nobody = torch.zeros(0, dtype=torch.long)
    assert cotangent(loss, torch.zeros(0, 3), nobody).shape == (0, 3)
    assert losses(loss, torch.zeros(0, 3), nobody).shape == (0,)
