"""Releases on a grid: what they promise, what they cost, and that training uses them when it is asked to."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from privshard.core.errors import InputError
from privshard.core.privacy import MechanismPlan, PrivacyParams
from privshard.privacy.discrete import SCALE_BITS
from privshard.privacy.grid import Grid, release_on_grid
from privshard.privacy.mean import noisy_mean
from privshard.privacy.optimizer import PrivateOptimizer
from privshard.privacy.plan import make_plan
from privshard.privacy.stream import ChaChaStream, insecure_key

PLAN = MechanismPlan("example", 0.25, 2, 0.7, 1.3, 12.5, 1e-5, "rdp", mean_releases=1, hardening="grid")


def stream(attempt=0):
    return ChaChaStream(insecure_key(3, shard=0, attempt=attempt), purpose="noise")


def test_what_is_released_lies_on_the_grid_whatever_the_sum_was():
    total = torch.randn(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = Grid.of(3000, sensitivity=0.7, noise_multiplier=1.3)
    released = release_on_grid(total, sensitivity=0.7, noise_multiplier=1.3, stream=stream())
    assert torch.equal((released / grid.spacing).round() * grid.spacing, released)
    noise = released - total
    assert abs(noise.std().item() / (0.7 * 1.3) - 1) < 5 / math.sqrt(2 * 3000)


@pytest.mark.parametrize("num", [1, 100, 100_000])
@pytest.mark.parametrize("noise", [0.5, 5.0, 40.0])
def test_the_noise_is_the_multiplier_times_the_sensitivity_on_the_grid(num, noise):
    """Rounded neighbours differ by at most C + spacing sqrt(D): the worst case, a half point up and down everywhere."""
    grid = Grid.of(num, sensitivity=0.7, noise_multiplier=noise)
    std = grid.spacing * 2**SCALE_BITS
    assert std >= noise * (0.7 + grid.spacing * math.sqrt(num))
    assert std == pytest.approx(noise * 0.7 * (1 + grid.overhead))
    assert grid.overhead < 1e-3
    one, other = torch.full((num,), 0.5 - 1e-9), torch.full((num,), 0.5 + 1e-9)
    moved = (other.double().round() - one.double().round()).norm().item()
    assert moved <= math.sqrt(num) * (1 + 1e-12) + 2e-9 * math.sqrt(num)


@pytest.mark.parametrize("order", [2, 3, 8, 20])
@pytest.mark.parametrize(("rate", "shift"), [(0.1, 4), (0.5, 2), (1.0, 3)])
def test_moments_of_shifted_discrete_gaussians_are_the_accounted_ones(order, rate, shift):
    """Both directions, summed over the integers at s = 8, against Opacus at z = s / shift."""
    from opacus.accountants.analysis.rdp import compute_rdp

    x = np.arange(-4000, 4001)
    null, moved = -(x**2) / 128.0, -((x - shift) ** 2) / 128.0
    with np.errstate(divide="ignore"):
        mixture = np.logaddexp(np.log1p(-rate) + null if rate < 1 else np.full(len(x), -np.inf), np.log(rate) + moved)
    null, mixture = (log - np.logaddexp.reduce(log) for log in (null, mixture))

    def divergence(p, q):
        return np.logaddexp.reduce(order * p + (1 - order) * q) / (order - 1)

    accounted = float(compute_rdp(q=rate, noise_multiplier=8.0 / shift, steps=1, orders=float(order)))
    assert divergence(mixture, null) == pytest.approx(accounted, rel=1e-9)
    assert divergence(null, mixture) <= accounted * (1 + 1e-9)


def parameters():
    return {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in {"b": (3,), "a": (40, 50)}.items()}


def trained(plan, sums=None, attempt=0):
    named = parameters()
    optimizer = PrivateOptimizer(
        torch.optim.SGD(named.values(), lr=1.0), named_parameters=named, plan=plan, stream=stream(attempt)
    )
    optimizer.release_mean(torch.ones(4, 6), radius=1.0)
    for _ in range(plan.steps):
        optimizer.release(sums)
    optimizer.check_complete()
    return torch.cat([named[name].detach().flatten() for name in sorted(named)]), optimizer


def test_training_on_the_grid_is_accounted_as_training_is_and_repeats_for_equal_streams():
    plain, usual = trained(replace(PLAN, hardening="none"))
    hard, optimizer = trained(PLAN)
    assert optimizer.events == usual.events == PLAN.events
    assert torch.equal(hard, trained(PLAN)[0])
    assert not torch.equal(hard, trained(PLAN, attempt=1)[0])
    assert not torch.equal(hard, plain)
    std = PLAN.noise_multiplier * PLAN.max_grad_norm * math.sqrt(PLAN.steps) / PLAN.expected_units
    assert abs(hard.double().std().item() / std - 1) < 5 / math.sqrt(2 * len(hard))


def test_sums_arrive_and_what_is_not_finite_counts_as_zero():
    sums = {"b": torch.tensor([1e4, math.nan, -math.inf]), "a": torch.zeros(40, 50)}
    moved = trained(PLAN, sums)[0] - trained(PLAN)[0]
    assert moved[-3:].tolist() == pytest.approx([-1e4 * 2 / 12.5, 0.0, 0.0], abs=1e-3)


def test_a_mean_on_the_grid_is_near_the_mean():
    vectors = torch.randn(500, 16, generator=torch.Generator().manual_seed(1)) + 1
    usual = noisy_mean(vectors, radius=8.0, noise_multiplier=0.5, stream=stream())
    hard = noisy_mean(vectors, radius=8.0, noise_multiplier=0.5, stream=stream(), hardening="grid")
    exact = noisy_mean(vectors, radius=8.0, noise_multiplier=0.0, stream=stream(), hardening="grid")
    assert (hard - exact).norm() < 0.1
    assert not torch.equal(hard, usual)


def test_other_accountants_and_grids_that_are_too_coarse_are_refused():
    with pytest.raises(InputError, match="accountant pld, got grid"):
        PrivacyParams(accountant="pld", hardening="grid")
    with pytest.raises(InputError, match="expected none or grid"):
        PrivacyParams(hardening="lattice")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="too much for the grid"):
        Grid.of(10**10, sensitivity=1.0, noise_multiplier=100.0)
    plan = make_plan(PrivacyParams(hardening="grid"), sample_rate=0.5, steps=10, nominal_units_per_shard=100)
    assert plan.hardening == "grid"


@pytest.mark.slow
def test_the_price_is_what_the_documentation_says():
    """0.8 microseconds a coordinate on the machine where it was measured; ten times that is not the same price."""
    total, started = torch.zeros(100_000), time.perf_counter()
    release_on_grid(total, sensitivity=1.0, noise_multiplier=5.0, stream=stream())
    assert time.perf_counter() - started < 1.0
    assert Grid.of(100_000, sensitivity=1.0, noise_multiplier=5.0).overhead == pytest.approx(9.5e-5, rel=0.01)
