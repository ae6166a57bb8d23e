"""Draws: what the production training releases along every coordinate, with and without a canary there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from privshard.audit.canary import LABEL, PARAMETER, CanaryMethod, canary_constants
from privshard.core.errors import InputError
from privshard.core.jobs import TrainingParams
from privshard.core.privacy import MechanismPlan
from privshard.training.shard import OnStep, train_shard

NewKey = Callable[[int, int], bytes]
"""(shard, attempt) -> the root key of that training, from wherever production takes it."""

LAST_SUM = TrainingParams(lr=1.0, average_from=1.0)
"""Plain steps of length one, and the last iterate: minus the sum of all releases. Whatever else an optimizer makes of
the releases is post-processing of them, so nothing is lost to the attacker."""


@dataclass(frozen=True)
class Draws:
    """The sum of a run's releases, one number a coordinate, in units of the clipping norm.

    inclusions: how often the coordinate's canary took part; 0 where there is none. batch_sizes: of every step that
    had anybody in it.
    """

    sums_P: np.ndarray
    inclusions_P: np.ndarray
    batch_sizes: tuple[int, ...]


def draw(
    plan: MechanismPlan,
    *,
    present: range,
    num_coordinates: int,
    root_key: bytes,
    on_step: OnStep = lambda done, total: None,
) -> Draws:
    """Run `train_shard` under `plan` on one canary for each coordinate in `present` (none: an empty shard).

    Everything but the rows is the production step: sampling, clipping, noise, normaliser, accounting. The plan's
    release of a mean is left out, since canaries have no features.
    """
    require_private(plan)
    method = CanaryMethod(num_coordinates, max_grad_norm=plan.max_grad_norm)
    trained = train_shard(
        method,
        canary_constants(torch.arange(present.start, present.stop)),
        labels_B=torch.full((len(present),), LABEL),
        unit_of_row=[f"canary-{k:09d}" for k in present],
        plan=without_mean(plan),
        params=LAST_SUM,
        root_key=root_key,
        max_rows=max(1, len(present)),
        on_step=on_step,
    )
    sums_P = -trained.tensors[PARAMETER].double().numpy() * (plan.expected_units / plan.max_grad_norm)
    return Draws(sums_P, method.witness.inclusions_P.numpy(), tuple(method.witness.batch_sizes))


def without_mean(plan: MechanismPlan) -> MechanismPlan:
    """The steps of a plan alone."""
    return replace(plan, mean_releases=0)


def require_private(plan: MechanismPlan) -> None:
    """Refuse a plan that claims nothing."""
    if not plan.private:
        raise InputError(
            "audit: expected a training with differential privacy, got one without: there is no claim to attack.",
            remedy="Audit a workspace whose privacy.epsilon is a number.",
        )
