"""`forget`: a person asks; what would be done is planned, then it is done, and a receipt says so."""

from __future__ import annotations

import secrets
import time
from typing import Any

import numpy as np

from privshard.api import facts
from privshard.api.reading import current_model
from privshard.api.setup import Setup, flags_of, partition_of, stored_recipe
from privshard.api.shards import adopt, committed, train_shards
from privshard.api.watching import watched
from privshard.core.errors import BudgetError, InputError
from privshard.core.jobs import OnProgress
from privshard.core.model import Composition
from privshard.core.removal import RemovalPlan, RemovalRequest
from privshard.store.workspace import Workspace
from privshard.unlearning import cascade, presence
from privshard.unlearning.clean_up import clean_up
from privshard.unlearning.edits import is_private, touched
from privshard.unlearning.live import component_of
from privshard.unlearning.plan import as_drop, plan_removal


def forget(
    workspace: str,
    *,
    subject: str,
    mode: str = "auto",
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Take a subject out of the data, the caches, the components and the model. The contract's `forget` object.

    mode: "drop" takes the subject's shard out of the model, "retrain" learns the shard anew without the subject,
    "auto" retrains where the budget admits it. dry_run: only plan. An interrupted removal is continued by asking
    again. An unknown or already forgotten subject is no error: the status says so.
    """
    started = time.perf_counter()
    if mode not in ("auto", "drop", "retrain"):
        raise InputError(f"mode: expected auto, drop or retrain, got {mode!r}.")
    if not subject:
        raise InputError("subject: expected a person's identifier, got an empty one.")
    with Workspace.open(workspace) as ws, ws.hold():
        setup, before = Setup.load(ws), current_model(ws)
        if not dry_run:
            adopt(ws)
            clean_up(ws)
        plan = _plan(ws, setup, subject, mode)
        receipt = None
        if plan.status == "planned" and not dry_run:
            receipt = _execute(ws, setup, plan, subject, on_progress or (lambda _: None))
        after = ws.ledger.current_model() if receipt else before
        return {
            "request": plan.request.id,
            "status": "done" if receipt else plan.status,
            "plan": [
                {"component": a.component, "action": a.action, "reason": a.reason, "shard": a.shard}
                for a in plan.actions
            ],
            "model_before": facts.version_name(before.version),
            "model_after": facts.version_name(after.version) if after else None,
            "metrics_before": receipt["metrics_before"] if receipt else dict(before.metrics or {}) or None,
            "metrics_after": dict(after.metrics) if after and after.metrics else None,
            "receipt": receipt,
            "elapsed_s": time.perf_counter() - started,
        }


def _plan(ws: Workspace, setup: Setup, subject: str, mode: str) -> RemovalPlan:
    """The plan of a request that was interrupted, or a new one."""
    subject_hash = ws.subject_hash(subject)
    waiting = cascade.pending(ws, subject_hash)
    if waiting is not None:
        return as_drop(waiting, reason="dropping it was asked for") if mode == "drop" else waiting
    partition = partition_of(ws, setup.num_shards)
    where = presence.find(ws, subject, partition=partition)
    component = component_of(ws.ledger, where.shard)
    request = RemovalRequest(secrets.token_hex(8), subject_hash, mode)  # pyright: ignore[reportArgumentType]
    refused = None
    if mode != "drop" and component is not None and where.num_train_rows > 0:
        refused = _retrain_refused(ws, setup, where.shard)
    leaving = component if where.num_train_rows > 0 else None
    reached = touched(ws, subject_hash, leaving=leaving, private=is_private(ws.ledger, setup.spend(1)))
    return plan_removal(
        request,
        where,
        component=component,
        mode=mode,  # pyright: ignore[reportArgumentType]
        retrain_refused=refused,
        seeded=ws.ledger.get("insecure_seed") is not None,
        already=subject_hash in ws.ledger.suppressed(),
        reached=reached.actions,
        taught_edits=reached.about_subject,
    )


def _retrain_refused(ws: Workspace, setup: Setup, shard: int) -> str | None:
    """Why the limit doesn't admit another training of the shard; None where it does."""
    from privshard.privacy.budget import admit

    try:
        admit(setup.limit)([*ws.ledger.spent_plans(shard), setup.plan])
    except BudgetError as error:
        return str(error)
    return None


def _execute(ws: Workspace, setup: Setup, plan: RemovalPlan, subject: str, tell: OnProgress) -> dict[str, Any] | None:
    recipe = stored_recipe(ws)

    def retrain(shard: int) -> tuple[str, np.ndarray | None]:
        from privshard.api.worker import open_base

        base_state = open_base(setup.base, None, digest=setup.base_digest, objects=ws.objects).state
        with (
            facts.executor(recipe, base_state, urgent=True) as executor,
            watched(ws, setup, kind="forget", on_progress=tell) as watch,
        ):
            executor.watched_by(on_event=watch.on_event, on_tick=watch.on_tick)
            train_shards(
                ws,
                setup,
                shards=[shard],
                flags=flags_of(recipe),
                trainer=executor,
                stop=executor.close,
                on_progress=watch.on_progress,
            )
        component = committed(ws)[shard]
        return component, logits_of(component)

    def logits_of(component: str) -> np.ndarray:
        from privshard.api import evaluation

        model = ws.ledger.current_model()
        live = list(model.composition.components) if model else []
        cache = evaluation.refresh(
            ws,
            setup,
            components=[*live, component],
            flags=flags_of(recipe),
            base_state=None,
            on_progress=tell,
        )
        return cache.component_logits[component]

    def run_model(composition: Composition) -> np.ndarray:
        from privshard.api import evaluation

        return evaluation.run_model(ws, setup, composition, flags=flags_of(recipe), base_state=None, on_progress=tell)

    def statement(composition: Composition) -> str:
        return facts.privacy_report(ws, setup, edits=len(composition.added))["statement"]

    return cascade.execute(
        plan,
        workspace=ws,
        partition=partition_of(ws, setup.num_shards),
        subject=subject,
        classes=setup.classes,
        retrain=retrain,
        spend_after=lambda shard: facts.shard_spends(ws, setup)[shard],
        statement=statement,
        on_progress=tell,
        logits_of=logits_of,
        run_model=run_model,
    )
