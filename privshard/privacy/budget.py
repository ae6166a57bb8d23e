"""Budgets: the limit on everything ever learnt from one shard, and the filter that enforces it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from privshard.core.errors import BudgetError
from privshard.core.privacy import MechanismPlan, PrivacyParams
from privshard.privacy.accounting import epsilon
from privshard.privacy.plan import history_events, spend_of
from privshard.privacy.renyi import best_order, renyi_epsilon_at

_SLACK = 1e-9  # relative: a limit that was derived from the same events is met by them despite rounding
MAX_REPEATS = 1 << 20

Admission = Callable[[Sequence[MechanismPlan]], None]
WorkspaceAdmission = Callable[[Mapping[int, Sequence[MechanismPlan]]], None]


def epsilon_limit(params: PrivacyParams, plan: MechanismPlan) -> float | None:
    """The most that may ever be spent on one shard; None without differential privacy.

    params.epsilon_limit where it is given, else what 1 + planned_retrains trainings under `plan` spend; at most
    params.workspace_limit, which by parallel composition is a limit on every shard.
    """
    if not plan.private:
        return None
    limit = params.epsilon_limit
    if limit is None:
        limit = spend_of([plan] * (1 + params.planned_retrains)).epsilon
    known = [value for value in (limit, params.workspace_limit) if value is not None]
    return min(known) if limit is not None else None


def admit(limit: float | None) -> Admission:
    """The check of one shard's history, the plan that asks for admission last: it raises BudgetError, or returns.

    Guaranteed: whoever sees every component and decides by them whether to retrain, and under which plan, learns at
    most (limit, delta) about a unit of the shard. While all plans are equal only their number is decided on the way, a
    number that the limit bounds beforehand, so their accountant decides. As soon as plans differ, a Renyi filter
    (Feldman and Zrnic 2021) does: every plan is charged at one order, the best for repeating the first plan up to the
    limit, which is fixed before anything was released. Under the rdp accountant both agree on equal plans, so that it
    is a filter throughout; prv and pld hold for one plan alone, and another one is refused.

    limit: from `epsilon_limit`; None admits only plans that promise no differential privacy. The check is pure and
    cheap: the ledger calls it inside the transaction that reserves the spend.
    """

    def check(plans: Sequence[MechanismPlan]) -> None:
        if limit is None:
            _require_public([plan for plan in plans if plan.private])
            return
        _require_one_plan(plans)
        spent = filter_epsilon(plans, limit=limit)
        if not spent <= limit * (1 + _SLACK):
            raise BudgetError(_refusal(plans, spent=spent, limit=limit), remedy=_REMEDY)

    return check


def admit_workspace(limit: float | None) -> WorkspaceAdmission | None:
    """The check of a whole workspace, shard -> its history with the plan that asks; None where there is no such limit.

    Guaranteed: all that is ever released from the workspace spends at most (limit, delta) for a unit, by parallel
    composition: the shards' histories are each held to `limit`, because a unit is in one shard only.
    """
    if limit is None:
        return None
    check = admit(limit)

    def check_all(histories: Mapping[int, Sequence[MechanismPlan]]) -> None:
        for shard, plans in histories.items():
            if not plans:
                continue
            try:
                check(plans)
            except BudgetError as error:
                raise BudgetError(
                    f"Limit of the workspace, by shard {shard}: {error.message}", remedy=_REMEDY
                ) from None

    return check_all


def filter_epsilon(plans: Sequence[MechanismPlan], *, limit: float) -> float:
    """What the filter charges for one shard's history, against `limit`; infinite where a plan has no noise."""
    spend = spend_of(plans)
    if spend.epsilon is None:
        return float("inf")
    if len({plan.events for plan in plans}) == 1:
        return spend.epsilon
    order = _filter_order(plans[0], limit)
    return renyi_epsilon_at(history_events(plans), delta=spend.delta, order=order)


def _filter_order(first: MechanismPlan, limit: float) -> float:
    """The best order for as many repetitions of `first` as the limit admits: a function of public constants."""

    def fits(times: int) -> bool:
        return epsilon(history_events([first] * times), delta=first.delta) <= limit * (1 + _SLACK)

    low, high = 1, 2
    while high < MAX_REPEATS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return best_order(history_events([first] * low), delta=first.delta)


def _require_one_plan(plans: Sequence[MechanismPlan]) -> None:
    first = plans[0]
    other = next((plan for plan in plans if plan.events != first.events), None)
    if other is not None and first.accountant != "rdp":
        raise BudgetError(
            f"The accountant {first.accountant} holds for one plan that is repeated as it is; after {first.events} "
            f"came {other.events}.",
            remedy="Keep the plan, or use accountant rdp, whose filter admits other plans, in a new workspace.",
        )


def _require_public(private: Sequence[MechanismPlan]) -> None:
    if private:
        raise BudgetError(
            "This shard has no privacy limit, because something was learnt from it without differential privacy.",
            remedy="A private training can't repair that: start a new workspace, or set privacy.epsilon to null.",
        )


_REMEDY = (
    "Drop the component (free), raise privacy.epsilon_limit knowingly, or plan for more retrains in a new workspace."
)


def _refusal(plans: Sequence[MechanismPlan], *, spent: float, limit: float) -> str:
    last, before = plans[-1], plans[:-1]
    already = filter_epsilon(before, limit=limit) if before else 0.0
    return (
        f"Privacy budget of this shard: {len(before)} training(s) have spent epsilon {already:.4g} of {limit:.4g} "
        f"(delta {last.delta:g}, unit {last.unit}); one more would make it {spent:.4g}."
    )
