"""The component of a shard without differential privacy as the optimum of its objective.

B examples, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privshard.core.errors import InputError
from privshard.core.jobs import TrainingParams
from privshard.core.method import Constants, LinearMethod, Method
from privshard.core.privacy import MechanismPlan
from privshard.training.curvature import curvature
from privshard.training.gather import take
from privshard.training.scaled import unscaled
from privshard.training.solver import solve


@dataclass(frozen=True)
class Exact:
    """The optimum, and where it was asked for the curvature there (`privshard.training.curvature`)."""

    tensors: dict[str, Tensor]
    curvature: dict[str, Tensor]


def train_exact(
    method: Method,
    constants: Constants | None,
    *,
    labels_B: Tensor,
    plan: MechanismPlan,
    params: TrainingParams,
    max_rows: int,
    on_step: Callable[[int], None],
) -> Exact:
    """The displacement that `privshard.training.solver.solve` finds with ridge params.weight_decay, in at most
    plan.steps products; rows in canonical order. Zero for an empty shard: it has nothing to learn. With
    params.curvature_rank also the curvature there, and for an empty shard none.

    Where the plan has a mean, the head's input is centred by that of the shard's own rows: the common part of all
    features is then left to the bias, and not to the ridge.

    InputError for a plan with differential privacy: the optimum is a function of the rows without any noise.
    """
    if plan.private:
        raise InputError(
            "training.optimizer: exact has no differential privacy, because the optimum depends on every row without "
            "noise.",
            remedy="Set training.optimizer to sgd (or leave it out), or privacy.epsilon to null.",
        )
    if not isinstance(method, LinearMethod):
        raise InputError(
            f"training.optimizer: exact expects a method that is linear in what it learns, got {method.name}.",
            remedy="Leave training.optimizer out, or use tangent or head.",
        )
    mean_D = None
    if plan.mean_releases and method.radius is not None:
        mean_D = _mean_feature(method, constants, max_rows, labels_B.device)

    def around(at: dict[str, Tensor]) -> dict[str, Tensor]:
        if not params.curvature_rank:
            return {}
        return curvature(
            method,
            constants,
            labels_n=labels_B,
            at=at,
            mean_D=mean_D,
            loss=params.loss,
            ridge=params.weight_decay,
            rank=params.curvature_rank,
            max_rows=max_rows,
        )

    if constants is None:
        zero = {name: torch.zeros(shape) for name, shape in method.shapes().items()}
        return Exact(zero, around(zero))
    centred = method if mean_D is None else method.centered(mean_D)
    assert isinstance(centred, LinearMethod)
    found = solve(
        centred,
        constants,
        labels_n=labels_B,
        ids=[f"{row:012d}" for row in range(len(labels_B))],
        loss=params.loss,
        ridge=params.weight_decay,
        max_products=plan.steps,
        max_rows=max_rows,
        near=getattr(method, "has_core", False),
        on_product=lambda done: on_step(min(done, plan.steps)),
    )
    tensors = unscaled(method, found.tensors)
    if mean_D is not None:
        tensors = method.uncentered(tensors, mean_D)
    return Exact(tensors, around(found.tensors))


def _mean_feature(method: Method, constants: Constants | None, max_rows: int, device: torch.device) -> Tensor:
    """The mean of the rows' features (D,), in double precision on the CPU; zero of none."""
    if constants is None:
        return torch.zeros(method.shapes()["head.weight"][1], dtype=torch.float64)
    num = len(next(iter(constants.values())))
    parts = [
        method.features(take(constants, np.arange(start, min(start + max_rows, num)), device=device))
        for start in range(0, num, max_rows)
    ]
    return torch.cat(parts).double().mean(0).cpu()
