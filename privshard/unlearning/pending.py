"""Requests that were recorded and not completed: a removal that was interrupted is continued by its stored plan."""

from __future__ import annotations

from privshard.core.removal import RemovalPlan
from privshard.store.ledger import Ledger
from privshard.store.workspace import Workspace
from privshard.unlearning.plan import plan_from_json, plan_to_json


def pending(workspace: Workspace, subject_hash: str) -> RemovalPlan | None:
    """The stored plan of a subject's request that is not completed, None where there is none.

    Look here before planning: rows that an interrupted removal erased can't be counted again, and the request has
    to be finished all the same.
    """
    plans = pending_plans(workspace.ledger)
    return next((plan for plan in plans if plan.request.subject_hash == subject_hash), None)


def pending_plans(ledger: Ledger) -> list[RemovalPlan]:
    """The plans of all requests that are not completed, in the order of the requests."""
    facts = ledger.facts()
    open_ids = [item.request.id for item in ledger.requests() if item.receipt is None]
    return [plan_from_json(facts[plan_key(request)]) for request in open_ids if plan_key(request) in facts]


def record(ledger: Ledger, plan: RemovalPlan) -> None:
    """Record a request with its plan at one commit point. An unchanged plan adds nothing, another one replaces it."""
    with ledger.transaction():
        ledger.add_request(plan.request)
        ledger.put(plan_key(plan.request.id), plan_to_json(plan))


def plan_key(request_id: str) -> str:
    """The ledger's fact that keeps a request's plan."""
    return f"plan/{request_id}"
