"""The noisy mean: bounded influence of one unit, the promised noise, and nothing but noise from nobody."""

from __future__ import annotations

import math

import pytest
import torch

from privshard.core.errors import BudgetError, VerificationError
from privshard.core.privacy import GaussianEvent, MechanismPlan
from privshard.privacy.mean import noisy_mean
from privshard.privacy.optimizer import PrivateOptimizer
from privshard.privacy.stream import ChaChaStream, insecure_key

RADIUS = 3.0


def stream(attempt=0):
    return ChaChaStream(insecure_key(0, shard=0, attempt=attempt), purpose="noise")


def test_without_noise_it_is_the_mean_of_the_clipped_vectors():
    vectors = torch.tensor([[3.0, 4.0], [0.3, 0.4], [float("nan"), 1.0]])
    expected = (torch.tensor([1.8, 2.4]) + torch.tensor([0.3, 0.4]) + torch.tensor([0.0, 1.0])) / 3
    found = noisy_mean(vectors, radius=RADIUS, noise_multiplier=0.0, stream=stream())
    torch.testing.assert_close(found, expected.double())


def test_one_unit_moves_sum_and_count_by_at_most_the_sensitivity():
    torch.manual_seed(0)
    vectors = torch.randn(20, 5) * 10
    bound = RADIUS * math.sqrt(1 + 0.25**2)
    for row in range(20):
        norm = vectors[row].norm()
        part = torch.cat([vectors[row] * min(1.0, RADIUS / norm), torch.tensor([0.25 * RADIUS])])
        assert part.norm() <= bound * (1 + 1e-6)


def test_the_noise_has_the_standard_deviation_that_is_accounted():
    units, noise = 400, 2.0
    vectors = torch.zeros(units, 2)
    vectors[:, 0] = 2.0
    draws = torch.stack(
        [noisy_mean(vectors, radius=RADIUS, noise_multiplier=noise, stream=stream(i)) for i in range(600)]
    )
    promised = noise * RADIUS * math.sqrt(1 + 0.25**2) / units
    assert draws[:, 1].std().item() == pytest.approx(promised, rel=0.12)
    assert draws[:, 0].mean().item() == pytest.approx(2.0, abs=0.02)


def test_nobody_gives_almost_nothing_and_stays_inside_the_radius():
    for attempt in range(20):
        mean = noisy_mean(torch.zeros(0, 64), radius=RADIUS, noise_multiplier=5.0, stream=stream(attempt))
        assert mean.norm().item() <= RADIUS * (1 + 1e-9)
    means = [noisy_mean(torch.zeros(0, 64), radius=RADIUS, noise_multiplier=5.0, stream=stream(i)) for i in range(20)]
    assert sum(mean.norm().item() < RADIUS / 2 for mean in means) > 10


def plan(means):
    return MechanismPlan("example", 1.0, 1, 1.0, 2.0, 10.0, 1e-5, "rdp", mean_releases=means)


def optimizer(means):
    parameter = torch.nn.Parameter(torch.zeros(2))
    return PrivateOptimizer(
        torch.optim.SGD([parameter], lr=1.0), named_parameters={"w": parameter}, plan=plan(means), stream=stream()
    )


def test_the_release_is_accounted_and_can_neither_be_repeated_nor_left_out():
    one = optimizer(1)
    one.release_mean(torch.ones(3, 2), radius=RADIUS)
    with pytest.raises(BudgetError, match="all were taken"):
        one.release_mean(torch.ones(3, 2), radius=RADIUS)
    one.release(None)
    one.check_complete()
    assert one.events == (GaussianEvent(2.0, 1.0, 2),)
    left_out = optimizer(1)
    left_out.release(None)
    with pytest.raises(VerificationError):
        left_out.check_complete()
    with pytest.raises(BudgetError):
        optimizer(0).release_mean(torch.ones(3, 2), radius=RADIUS)
