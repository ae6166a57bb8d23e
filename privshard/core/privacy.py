"""What a privacy guarantee is made of: parameters, the frozen mechanism plan, and what it spends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from privshard.core.errors import InputError

Unit = Literal["example", "subject"]
AccountantName = Literal["rdp", "prv", "pld"]
Hardening = Literal["none", "grid"]
ADJACENCY = "add_remove"
SAMPLING = "poisson"


@dataclass(frozen=True)
class PrivacyParams:
    """What a person chooses about the guarantee. `epsilon=None` means no differential privacy at all.

    epsilon: upper bound for one training of a shard. epsilon_limit: upper bound for everything ever learnt from a
    shard (None: what 1 + planned_retrains trainings spend); workspace_limit: for everything ever learnt from the
    workspace (None: that of its shards). delta in (0, 1). max_grad_norm > 0, the clipping norm of one unit's gradient.
    accountant: rdp also for plans that change on the way; prv and pld, tighter, only for a plan that is repeated as it
    is. hardening: "grid" draws the noise exactly, from the discrete Gaussian on a public grid.
    """

    epsilon: float | None = 8.0
    delta: float = 1e-5
    unit: Unit = "example"
    max_grad_norm: float = 1.0
    planned_retrains: int = 1
    epsilon_limit: float | None = None
    accountant: AccountantName = "rdp"
    workspace_limit: float | None = None
    hardening: Hardening = "none"

    def __post_init__(self) -> None:
        _positive("privacy.epsilon", self.epsilon, "or null for no differential privacy")
        _positive("privacy.max_grad_norm", self.max_grad_norm)
        _positive("privacy.epsilon_limit", self.epsilon_limit, "or null to derive it from planned_retrains")
        _positive("privacy.workspace_limit", self.workspace_limit, "or null for none beside the shards' limits")
        if not 0 < self.delta < 1:
            raise InputError(f"privacy.delta: expected a number in (0, 1), got {self.delta}.")
        if self.planned_retrains < 0:
            raise InputError(f"privacy.planned_retrains: expected 0 or more, got {self.planned_retrains}.")
        _check_hardening(self.hardening, self.accountant)


@dataclass(frozen=True)
class GaussianEvent:
    """`steps` releases of a Poisson-subsampled Gaussian mechanism: the only event that is ever accounted."""

    noise_multiplier: float
    sample_rate: float
    steps: int


@dataclass(frozen=True)
class PrivacySpend:
    """An upper bound: (epsilon, delta) for one `unit` under `adjacency`, by `accountant`. epsilon None: unbounded."""

    epsilon: float | None
    delta: float
    unit: Unit
    accountant: AccountantName
    adjacency: str = ADJACENCY


@dataclass(frozen=True)
class MechanismPlan:
    """The one object that sampling, clipping, noise and accounting of a shard's training all read.

    Every field is a public constant. `expected_units` (L) is the normaliser, sample_rate times the nominal number
    of units of a shard, never the true one. `noise_multiplier` 0 means no differential privacy (epsilon None).
    `mean_releases` 1: before the first step, the noisy mean of the units' features is released with the same noise
    multiplier, everyone included; training then centres the head's input by it. `events` is what one training
    releases about a unit, `count_events` a noisy count where one was taken. `hardening` "grid": noise is drawn exactly,
    on a grid (`privshard.privacy.grid`). `sampling` and `adjacency` have one value each, the one that is accounted.
    """

    unit: Unit
    sample_rate: float
    steps: int
    max_grad_norm: float
    noise_multiplier: float
    expected_units: float
    delta: float
    accountant: AccountantName
    mean_releases: int = 0
    count_noise_multiplier: float | None = None
    adjacency: str = ADJACENCY
    sampling: str = SAMPLING
    hardening: Hardening = "none"

    def __post_init__(self) -> None:
        if self.sampling != SAMPLING:
            raise InputError(
                f"sampling: expected {SAMPLING}, got {self.sampling!r}.",
                remedy="Accounting holds for Poisson sampling alone; shuffled, weighted or fixed batches spend more.",
            )
        if self.adjacency != ADJACENCY:
            raise InputError(f"adjacency: expected {ADJACENCY}, got {self.adjacency!r}; no other is accounted.")
        if not 0 < self.delta < 1:
            raise InputError(f"privacy.delta: expected a number in (0, 1), got {self.delta}.")
        if not 0 < self.sample_rate <= 1:
            raise InputError(f"training.sample_rate: expected a number in (0, 1], got {self.sample_rate}.")
        if self.steps < 1:
            raise InputError(f"training.steps: expected at least 1, got {self.steps}.")
        if not (self.noise_multiplier >= 0 and math.isfinite(self.noise_multiplier)):
            raise InputError(f"noise_multiplier: expected a finite number, 0 or more, got {self.noise_multiplier}.")
        _positive("max_grad_norm", self.max_grad_norm)
        _positive("count noise multiplier", self.count_noise_multiplier, "or none")
        if self.mean_releases not in (0, 1):
            raise InputError(f"mean_releases: expected 0 or 1, got {self.mean_releases}.")
        if not self.expected_units > 0:
            raise InputError(f"expected_units: expected a positive public constant, got {self.expected_units}.")
        _check_hardening(self.hardening, self.accountant)

    @property
    def private(self) -> bool:
        """Whether this plan gives differential privacy."""
        return self.noise_multiplier > 0

    @property
    def events(self) -> tuple[GaussianEvent, ...]:
        """What one training under this plan composes."""
        mean = (GaussianEvent(self.noise_multiplier, 1.0, 1),) * self.mean_releases
        return (*mean, GaussianEvent(self.noise_multiplier, self.sample_rate, self.steps))

    @property
    def count_events(self) -> tuple[GaussianEvent, ...]:
        """The noisy count behind `expected_units`, released once for all shards and attempts."""
        noise = self.count_noise_multiplier
        return () if noise is None else (GaussianEvent(noise, 1.0, 1),)


def _positive(name: str, value: float | None, alternative: str = "") -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name}: expected a positive number{' ' + alternative if alternative else ''}, got {value}.")


def _check_hardening(hardening: str, accountant: str) -> None:
    if hardening not in ("none", "grid"):
        raise InputError(f"privacy.hardening: expected none or grid, got {hardening!r}.")
    if hardening == "grid" and accountant != "rdp":
        raise InputError(
            f"privacy.hardening: expected none beside the accountant {accountant}, got grid.",
            remedy="Noise on a grid is accounted by rdp, whose bound is proved for it; set privacy.accountant to rdp.",
        )
