"""The run audit: coins, guesses, and the pool over shards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from privshard.audit.canary import CanaryMethod
from privshard.audit.run import run_audit
from privshard.core.errors import InputError
from privshard.core.jobs import TrainingParams

PARAMS = TrainingParams(lr=0.3, momentum=0.9, average_from=0.5)


def audited(plan, claim, keys, *, canaries=800, shards=4, params=PARAMS):
    return run_audit(
        CanaryMethod(canaries, max_grad_norm=plan.max_grad_norm),
        {"coordinate": torch.arange(canaries)},
        labels_B=torch.ones(canaries, dtype=torch.long),
        plan=plan,
        params=params,
        num_shards=shards,
        claim=claim,
        new_key=keys,
        coins=np.random.default_rng(7),
        max_rows=canaries,
    )


def test_coins_are_guessed_better_the_larger_epsilon_is_and_never_beyond_the_claim(claimed, keys):
    bounds = []
    for epsilon in (0.5, 8.0, 30.0):
        plan, claim = claimed(epsilon, steps=10, accountant="rdp")
        found = audited(plan, claim, keys(0))
        assert found.ok
        bounds.append(found.epsilon_lower)
    assert bounds == sorted(bounds)
    assert bounds[0] < 0.5
    assert 1.5 < bounds[1] < 8.0


def test_a_training_without_its_noise_is_contradicted(claimed, keys):
    plan, claim = claimed(1.0, steps=5)
    found = audited(replace(plan, noise_multiplier=0.01), claim, keys(1), shards=3)
    assert found.contradicted
    assert found.epsilon_lower > 3


def test_an_empty_shard_is_trained_and_guessed_like_any_other(claimed, keys):
    plan, claim = claimed(3.0, steps=2)
    found = audited(plan, claim, keys(2), canaries=16, shards=8)
    assert found.num_canaries == 16
    assert found.epsilon_lower == 0.0


def test_canaries_must_reach_every_shard(claimed, keys):
    plan, claim = claimed(3.0)
    with pytest.raises(InputError, match="at least two a shard"):
        audited(plan, claim, keys(0), canaries=5)
