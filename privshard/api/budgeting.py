"""`budget`: what every shard has spent, what is left, and what more retrainings would need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from privshard.api import facts
from privshard.api.setup import Setup
from privshard.core.errors import BudgetError, InputError
from privshard.core.privacy import MechanismPlan
from privshard.store.workspace import Workspace

GROUP_SIZES = (2, 4, 8)
QUESTIONS = ("retrains", "epsilon", "noise")


def budget(
    workspace: str,
    *,
    what_if: str | None = None,
    retrains: int = 1,
    noise_multiplier: float | None = None,
    group_sizes: Sequence[int] = GROUP_SIZES,
) -> dict[str, Any]:
    """What every shard has spent (odometer), what its filter leaves, and how many releases that was.

    what_if: "retrains" (how many more at this noise?), "epsilon" (what would `retrains` more have spent?) or "noise"
    (how much would `retrains` more need?), answered for every shard by the check that would admit them.
    noise_multiplier: None means the plan's. group_sizes: where the unit is an example, what subjects with so many are
    promised; ask for public numbers, since how many somebody has is private.

    The contract's `budget` object. VerificationError where the ledger is damaged, since its numbers mean nothing then.
    """
    _check(what_if, retrains, noise_multiplier, group_sizes)
    with Workspace.open(workspace) as ws:
        ws.ledger.require_sound()
        setup = Setup.load(ws)
        spent = ws.ledger.spent_by_shard()
        histories = {shard: spent.get(shard, []) for shard in range(setup.num_shards)}
        limit = setup.limit
        report = facts.privacy_report(ws, setup)
        spends = facts.shard_spends(ws, setup)
        left: Callable[[tuple[MechanismPlan, ...]], int | None] = cache(
            lambda trained: _retrains_left(setup, trained, limit)
        )
        groups = _groups(setup, histories, left, group_sizes)
        return {
            "unit": setup.plan.unit,
            "delta": setup.plan.delta,
            "accountant": setup.plan.accountant,
            "shards": [
                {
                    "shard": shard,
                    "epsilon_spent": spends[shard].epsilon,
                    "epsilon_limit": limit,
                    "epsilon_left": _difference(limit, spends[shard].epsilon),
                    "retrains_left": left(tuple(plans)),
                    "releases": len(plans),
                }
                for shard, plans in histories.items()
            ],
            "workspace": {"epsilon_spent": report["epsilon"], "epsilon_limit": limit},
            "groups": groups,
            "what_if": what_if and _answers(setup, histories, limit, what_if, retrains, noise_multiplier),
            "statement": " ".join([report["statement"], *_group_sentence(groups)]),
        }


def _check(what_if: str | None, retrains: int, noise: float | None, group_sizes: Sequence[int]) -> None:
    if what_if is not None and what_if not in QUESTIONS:
        raise InputError(f"what-if: expected one of {', '.join(QUESTIONS)}, got {what_if!r}.")
    if what_if is None and (retrains != 1 or noise is not None):
        raise InputError(
            f"what-if: expected one of {', '.join(QUESTIONS)} beside retrains or a noise multiplier, got none.",
            remedy="Say what to ask: --what-if retrains.",
        )
    if retrains < 1:
        raise InputError(f"retrains: expected 1 or more, got {retrains}.")
    if noise is not None and not 0 < noise < float("inf"):
        raise InputError(f"noise multiplier: expected a finite number above 0, got {noise}.")
    if any(size < 1 for size in group_sizes):
        raise InputError(f"group sizes: expected 1 or more each, got {', '.join(map(str, group_sizes))}.")


def _retrains_left(setup: Setup, trained: Sequence[MechanismPlan], limit: float | None) -> int | None:
    """How many more trainings at the plan's noise; from the setup's own table where that says it."""
    table, known = setup.spends, setup.plan.private and limit is not None
    if known and set(trained) <= {setup.plan} and (table[-1] or 0) >= (limit or 0) * (1 - 1e-9):
        admitted = sum((value or 0) <= (limit or 0) * (1 + 1e-9) for value in table)
        return max(0, admitted - len(trained))
    from privshard.privacy.planner import retrains_left

    return retrains_left(trained, setup.plan, limit=limit)


def _answers(
    setup: Setup,
    histories: dict[int, list[MechanismPlan]],
    limit: float | None,
    question: str,
    retrains: int,
    noise: float | None,
) -> dict[str, Any]:
    """One answer a shard; equal histories are asked about once."""
    if limit is None or not setup.plan.private:
        raise InputError(
            "what-if: expected a workspace with differential privacy, got one that has no budget to plan with.",
            remedy="Set privacy.epsilon in a new workspace.",
        )
    plan = setup.plan if noise is None else replace(setup.plan, noise_multiplier=noise)
    ask = cache(lambda trained: _answer(trained, plan, limit, question, retrains))
    return {
        "question": question,
        "shards": [{"shard": shard, **ask(tuple(plans))} for shard, plans in histories.items()],
    }


def _answer(
    trained: Sequence[MechanismPlan], plan: MechanismPlan, limit: float, question: str, retrains: int
) -> dict[str, Any]:
    """How many more trainings at which noise, what they bring the shard's spend to, and whether that is admitted."""
    from privshard.privacy.budget import admit, filter_epsilon
    from privshard.privacy.planner import noise_for_retrains, retrains_left

    more, noise = retrains, plan.noise_multiplier
    if question == "retrains":
        more = retrains_left(trained, plan, limit=limit) or 0
    elif question == "noise":
        found = noise_for_retrains(trained, plan, retrains=retrains, limit=limit)
        if found is None:
            return {"retrains": retrains, "noise_multiplier": None, "epsilon": None, "admitted": False}
        noise = found
    asked = [*trained, *[replace(plan, noise_multiplier=noise)] * more]
    admitted = True
    try:
        if asked:
            admit(limit)(asked)
    except BudgetError:
        admitted = False
    try:
        spent = filter_epsilon(asked, limit=limit) if asked else 0.0
    except BudgetError:
        spent = None
    return {"retrains": more, "noise_multiplier": noise, "epsilon": spent, "admitted": admitted}


def _groups(
    setup: Setup,
    histories: dict[int, list[MechanismPlan]],
    left: Callable[[tuple[MechanismPlan, ...]], int | None],
    sizes: Sequence[int],
) -> list[dict[str, Any]]:
    """What subjects with several examples are promised, now and when the limit is reached; for unit example alone."""
    if setup.plan.unit != "example" or not setup.plan.private or setup.limit is None:
        return []
    distinct = {tuple(plans) for plans in histories.values()}
    final = {(*plans, *[setup.plan] * (left(plans) or 0)) for plans in distinct}
    return [
        {"examples": size, "epsilon_spent": _worst(distinct, size), "epsilon_limit": _worst(final, size)}
        for size in sizes
    ]


def _worst(histories: Collection[tuple[MechanismPlan, ...]], size: int) -> float | None:
    """The largest spend of a group among the shards; None where one has no bound."""
    from privshard.privacy.group import group_spend

    spent = [group_spend(plans, group_size=size).epsilon if plans else 0.0 for plans in histories]
    known = [value for value in spent if value is not None]
    return max(known, default=0.0) if len(known) == len(spent) else None


def _group_sentence(groups: list[dict[str, Any]]) -> list[str]:
    from privshard.privacy.statement import group_sentence

    known = {group["examples"]: group["epsilon_spent"] for group in groups if group["epsilon_spent"] is not None}
    return [group_sentence(known)] if known else []


def _difference(limit: float | None, spent: float | None) -> float | None:
    return None if limit is None or spent is None else max(0.0, limit - spent)
