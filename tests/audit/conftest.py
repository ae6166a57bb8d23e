"""Plans with a claim, and keys of the auditor's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from privshard.core.privacy import MechanismPlan, PrivacyParams, PrivacySpend
from privshard.privacy.plan import make_plan, spend_of
from privshard.privacy.stream import insecure_key


@pytest.fixture(scope="session")
def claimed() -> Callable[..., tuple[MechanismPlan, PrivacySpend]]:
    """A plan and what its accountant claims."""

    def make(epsilon: float, *, rate: float = 1.0, steps: int = 1, accountant: str = "prv", means: int = 0):
        params = PrivacyParams(epsilon=epsilon, accountant=accountant)  # pyright: ignore[reportArgumentType]
        plan = make_plan(params, sample_rate=rate, steps=steps, nominal_units_per_shard=100, mean_releases=means)
        return plan, spend_of([plan])

    return make


@pytest.fixture
def keys() -> Callable[[int], Callable[[int, int], bytes]]:
    """seed -> (shard, attempt) -> root key."""
    return lambda seed: lambda shard, attempt: insecure_key(seed, shard=shard, attempt=attempt)
