"""The nouns of unlearning: request, plan, receipt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["auto", "drop", "retrain"]
Action = Literal["drop", "retrain", "erase", "suppress", "drop_edit", "retire_locator"]
Guarantee = Literal["exact_drop", "exact_retrain_seeded", "fresh_retrain", "dp_bound"]
Status = Literal["done", "planned", "unknown_subject", "already_forgotten"]


@dataclass(frozen=True)
class RemovalRequest:
    """Somebody asks to be forgotten. `subject_hash` is keyed: the raw identifier is never stored."""

    id: str
    subject_hash: str
    mode: Mode


@dataclass(frozen=True)
class PlannedAction:
    """One thing that the plan would do, and why."""

    component: str | None
    action: Action
    reason: str
    shard: int | None = None


@dataclass(frozen=True)
class RemovalPlan:
    """What would be done for a request, before anything is."""

    request: RemovalRequest
    status: Status
    actions: tuple[PlannedAction, ...]
    guarantee: Guarantee | None
    num_train_rows: int
    num_eval_rows: int
