"""The plan of a removal: what would be done for a request and why, as a pure function of what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from privshard.core.errors import BudgetError
from privshard.core.removal import Mode, PlannedAction, RemovalPlan, RemovalRequest
from privshard.unlearning.presence import Presence

_SUPPRESS = PlannedAction(None, "suppress", "the subject may not be ingested again")


def plan_removal(
    request: RemovalRequest,
    presence: Presence,
    *,
    component: str | None,
    mode: Mode,
    retrain_refused: str | None,
    seeded: bool,
    already: bool,
    reached: Sequence[PlannedAction] = (),
    taught_edits: bool = False,
) -> RemovalPlan:
    """What would be done for `request`; nothing is.

    component: what the current model holds of the subject's shard; None where that shard was dropped before.
    mode: "drop" takes the component out of the model, "retrain" replaces it by one that is learnt from everyone
    else and has the same weight (an empty shard keeps its weight too: its emptiness is private), "auto" retrains
    where the budget admits it and drops otherwise. retrain_refused: why the budget does not admit it, or None.
    seeded: randomness is a function of a seed. already: the subject was forgotten before. reached: what goes of edits
    and locators; taught_edits: whether one of them was learnt from an image of the subject (`unlearning.edits`).

    Status: "unknown_subject" and "already_forgotten" plan nothing; "planned" otherwise, also where rows of a
    forgotten subject are there again. A subject that no component learnt from is erased, and the model stays.

    BudgetError for mode "retrain" where the budget refuses it.

    Test: tests/unlearning/test_plan.py.
    """
    if not presence.known and not taught_edits:
        status = "already_forgotten" if already else "unknown_subject"
        return RemovalPlan(request, status, (), None, num_train_rows=0, num_eval_rows=0)
    shard, learnt = presence.shard, component is not None and presence.num_train_rows > 0
    erase = PlannedAction(None, "erase", _erase_reason(presence, component), shard)
    if not learnt:
        actions, guarantee = ((erase, _SUPPRESS) if presence.known else (_SUPPRESS,)), None
    elif mode == "drop" or (mode == "auto" and retrain_refused is not None):
        actions = (
            PlannedAction(component, "drop", _drop_reason(shard, retrain_refused, mode), shard),
            erase,
            _SUPPRESS,
        )
        guarantee = "exact_drop"
    elif retrain_refused is not None:
        raise BudgetError(
            f"Shard {shard} can't be retrained: {retrain_refused}",
            remedy="Dropping its component is free: --mode drop, or --mode auto.",
        )
    else:
        reason = f"it learnt from the subject; shard {shard} learns it again from everyone else, under the same weight"
        actions = (erase, PlannedAction(component, "retrain", reason, shard), _SUPPRESS)
        guarantee = "exact_retrain_seeded" if seeded else "fresh_retrain"
    plan = RemovalPlan(
        request,
        "planned",
        actions,
        guarantee,
        num_train_rows=presence.num_train_rows,
        num_eval_rows=presence.num_eval_rows,
    )
    return with_edits(plan, reached)


def with_edits(plan: RemovalPlan, reached: Sequence[PlannedAction]) -> RemovalPlan:
    """The same removal with exactly these edits to drop and locators to retire, before everything else."""
    others = tuple(action for action in plan.actions if action.action not in ("drop_edit", "retire_locator"))
    return _guaranteed(replace(plan, actions=(*reached, *others)))


def _guaranteed(plan: RemovalPlan) -> RemovalPlan:
    """A plan that drops edits and leaves the shards as they are guarantees an exact drop as well."""
    if change_of(plan) is not None:
        return plan
    drops = any(action.action == "drop_edit" for action in plan.actions)
    return replace(plan, guarantee="exact_drop" if drops else None)


def change_of(plan: RemovalPlan) -> PlannedAction | None:
    """The one action that changes the model, None where it stays as it is."""
    return next((action for action in plan.actions if action.action in ("drop", "retrain")), None)


def as_drop(plan: RemovalPlan, *, reason: str) -> RemovalPlan:
    """The same removal by dropping what was to be retrained; a plan that retrains nothing comes back as it is."""
    change = change_of(plan)
    if change is None or change.action == "drop":
        return plan
    others = tuple(action for action in plan.actions if action is not change)
    dropped = replace(change, action="drop", reason=f"it learnt from the subject; {reason}")
    return replace(plan, actions=(dropped, *others), guarantee="exact_drop")


def rebased(plan: RemovalPlan, *, component: str | None) -> RemovalPlan:
    """The same removal for what the model holds of the shard by now: another removal may have come in between.

    component: of the current model; None where the shard was dropped since, so that only rows are left to erase.
    """
    change = change_of(plan)
    if change is None or change.component == component:
        return plan
    if component is None:
        return _guaranteed(replace(plan, actions=tuple(action for action in plan.actions if action is not change)))
    now = replace(change, component=component)
    return replace(plan, actions=tuple(now if action is change else action for action in plan.actions))


def plan_to_json(plan: RemovalPlan) -> dict[str, Any]:
    """Plain JSON form."""
    return {**asdict(plan), "actions": [asdict(action) for action in plan.actions]}


def plan_from_json(value: Mapping[str, Any]) -> RemovalPlan:
    """Inverse of `plan_to_json`."""
    request = RemovalRequest(**value["request"])
    actions = tuple(PlannedAction(**action) for action in value["actions"])
    return RemovalPlan(**{**value, "request": request, "actions": actions})


def _drop_reason(shard: int, refused: str | None, mode: Mode) -> str:
    why = f"retraining shard {shard} is refused: {refused}" if mode == "auto" else "dropping it was asked for"
    return f"it learnt from the subject; {why}"


def _erase_reason(presence: Presence, component: str | None) -> str:
    train, held_out, shard = presence.num_train_rows, presence.num_eval_rows, presence.shard
    text = f"{train} training row(s) of shard {shard} and {held_out} held-out row(s) are about the subject"
    if train == 0:
        return f"{text}; no component learnt from held-out rows, so the model stays as it is"
    if component is None:
        return f"{text}; the model has no component of shard {shard} any more, so it stays as it is"
    return f"{text}; what was computed from them goes too"
