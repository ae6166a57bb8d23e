"""The cascade of a removal: rows, caches, component, model, receipt, in an order that survives being killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from privshard.core.errors import BudgetError, InputError, VerificationError
from privshard.core.jobs import OnProgress, Progress
from privshard.core.model import Composition
from privshard.core.partition import Partition
from privshard.core.privacy import PrivacySpend
from privshard.core.removal import RemovalPlan
from privshard.data.shards import partition_ids, read_partition, rewrite_without
from privshard.store.edits import retire_locators
from privshard.store.layout import LOCATOR_PARTS, private_path
from privshard.store.views import ModelVersion
from privshard.store.workspace import Workspace
from privshard.unlearning import eval_cache, shard_cache
from privshard.unlearning.clean_up import clean_up
from privshard.unlearning.edits import Touched, is_private, touched
from privshard.unlearning.live import attempts_of, component_of
from privshard.unlearning.pending import pending as pending
from privshard.unlearning.pending import record
from privshard.unlearning.plan import as_drop, change_of, rebased, with_edits
from privshard.unlearning.receipt import make_receipt

if TYPE_CHECKING:
    import numpy as np

Retrain = Callable[[int], "tuple[str, np.ndarray | None]"]
LogitsOf = Callable[[str], "np.ndarray | None"]
RunModel = Callable[[Composition], "np.ndarray | None"]
REPORTS = "reports"


def execute(
    plan: RemovalPlan,
    *,
    workspace: Workspace,
    partition: Partition,
    subject: str,
    classes: Sequence[str],
    retrain: Retrain,
    spend_after: Callable[[int], PrivacySpend],
    statement: Callable[[Composition], str],
    on_progress: OnProgress = lambda _: None,
    logits_of: LogitsOf = lambda _: None,
    run_model: RunModel = lambda _: None,
) -> dict[str, Any] | None:
    """Do what `plan` says and return the signed receipt; None for an unknown subject, of whom nothing is recorded.

    Guaranteed: one ledger transaction is the commit point of model, receipt and suppression. Whenever it is killed,
    executing the stored plan (`pending`) again finishes the same request; after the commit point any execution for
    the subject, or `clean_up`, finishes what is left. Rows are erased before a shard is retrained, and a component
    that an interrupted run committed is used only if it learnt from exactly the rows that are there now.

    The caller holds the workspace's lock, and commits components that were written and not yet committed before.
    retrain: shard -> (id, logits) of a new committed component; logits as `EvalCache` keeps them, of the held-out
    rows that are left, or None. logits_of: the same of a component that is committed already. run_model: the logits of
    a composition with a retrained component, where they don't follow from those of its components; after a drop no
    model is run, and metrics are None until `evaluate`. spend_after: shard -> all it has spent. statement: of a
    composition's guarantee.

    InputError where there is no model yet, where `subject` is not the plan's, or where the plan overlooks what the
    model holds of its shard. BudgetError where the budget refuses a retraining that the plan counted on: mode "auto"
    drops instead; for mode "retrain" the request stays open.

    Test: tests/unlearning/test_cascade.py, and test_interruption.py, which kills it at every write.
    """
    ledger = workspace.ledger
    if plan.status == "unknown_subject":
        return None
    before = _check(plan, workspace, subject)
    completed = _receipt(plan, workspace)
    if completed is not None or plan.status == "already_forgotten":
        clean_up(workspace)
        return None if completed is None else workspace.sign(completed)
    shard = partition.shard_of(subject)

    def tell(stage: str, done: int) -> None:
        on_progress(Progress(plan.request.id, shard, stage, done, 3))

    plan = _up_to_date(plan, workspace, before, shard)
    plan, reached = _with_edits(plan, workspace, private=is_private(ledger, spend_after(shard)))
    record(ledger, plan)
    tell("erase", 0)
    _erase(plan, workspace, subject=subject, shard=shard)
    metrics_before = _metrics(workspace, before.composition, classes)
    tell("forget", 1)
    plan, replacement = _prepare(plan, workspace, shard, retrain=retrain, logits_of=logits_of)
    after = _composition(plan, before, replacement=replacement).without(set(reached.edits))
    changed = after.digest != before.composition.digest
    if replacement is not None:
        _run(workspace, after, run_model)
    metrics_after = _metrics(workspace, after, classes)
    receipt = make_receipt(
        plan,
        before=before,
        after=after,
        version_after=before.version + changed,
        component_after=replacement,
        metrics_before=metrics_before,
        metrics_after=metrics_after,
        spend=spend_after(shard),
        statement=statement(after),
        counted=ledger.noisy_count() is not None,
        insecure=ledger.get("insecure_seed") is not None,
        bounded_edits=reached.bounded,
    )
    tell("commit", 2)
    with ledger.transaction():
        if changed:
            ledger.add_model(after, reason=f"forget {plan.request.id}", metrics=metrics_after)
        retire_locators(ledger, reached.locators)
        ledger.complete_request(plan.request.id, receipt=receipt, suppress=True)
    clean_up(workspace)
    tell("commit", 3)
    return workspace.sign(receipt)


def _check(plan: RemovalPlan, workspace: Workspace, subject: str) -> ModelVersion:
    """The model that the subject is to be removed from."""
    if workspace.subject_hash(subject) != plan.request.subject_hash:
        raise InputError(f"Removal {plan.request.id}: expected its own subject, got another one.")
    model = workspace.ledger.current_model()
    if model is None:
        raise InputError(
            f"Workspace {workspace.root}: expected a model to remove a subject from, found an unfinished training.",
            remedy="Finish it with `privshard train`, or delete the workspace.",
        )
    return model


def _receipt(plan: RemovalPlan, workspace: Workspace) -> dict[str, Any] | None:
    """The receipt where this request, or for a forgotten subject an earlier one, is completed."""
    if plan.status == "already_forgotten":
        held = workspace.ledger.receipt_for(plan.request.subject_hash)
    else:
        requests = workspace.ledger.requests()
        held = next((item.receipt for item in requests if item.request.id == plan.request.id), None)
    return None if held is None else dict(held)


def _up_to_date(plan: RemovalPlan, workspace: Workspace, model: ModelVersion, shard: int) -> RemovalPlan:
    """The plan for what the model holds of the shard now; other removals may have completed since it was made."""
    change, component = change_of(plan), component_of(workspace.ledger, shard)
    if change is None and component is not None and plan.num_train_rows > 0:
        raise InputError(
            f"Removal {plan.request.id}: the model has component {component} of shard {shard}, which learnt from the "
            "subject; the plan overlooks it.",
            remedy="Plan it again.",
        )
    if change is None or change.component in model.composition.weights:
        return plan
    return rebased(plan, component=component)


def _with_edits(plan: RemovalPlan, workspace: Workspace, *, private: bool) -> tuple[RemovalPlan, Touched]:
    """The plan with the edits and locators that it reaches by now, whatever was learnt or reverted in between."""
    change = change_of(plan)
    leaving = change.component if change else None
    reached = touched(workspace, plan.request.subject_hash, leaving=leaving, private=private)
    return with_edits(plan, reached.actions), reached


def _erase(plan: RemovalPlan, workspace: Workspace, *, subject: str, shard: int) -> None:
    """Take the subject's rows, and what was computed from them without a model, out of the workspace.

    The rows go first: a cache that is about other rows than its shard holds is never read. What was cached about the
    others is kept for a fresh retraining. A seeded one must be bit for bit what it would be without the subject, so it
    fills its cache anew; and a shard that is dropped needs none.
    """
    objects, change = workspace.objects, change_of(plan)
    rewrite_without(objects, workspace.shard_dir(shard), subject=subject)
    rewrite_without(objects, workspace.eval_dir(), subject=subject)
    seeded = workspace.ledger.get("insecure_seed") is not None
    if seeded or (change is not None and change.action == "drop") or component_of(workspace.ledger, shard) is None:
        shard_cache.delete(workspace, shard)
    else:
        keep = partition_ids(objects, workspace.shard_dir(shard))
        shard_cache.erase_rows(workspace, shard, keep=keep)
    eval_cache.erase_rows(workspace, keep=partition_ids(objects, workspace.eval_dir()))
    objects.delete_tree(REPORTS)
    objects.delete_tree(LOCATOR_PARTS)


def _prepare(
    plan: RemovalPlan, workspace: Workspace, shard: int, *, retrain: Retrain, logits_of: LogitsOf
) -> tuple[RemovalPlan, str | None]:
    """The plan that holds by now, and the committed replacement of a component that was to be retrained."""
    change = change_of(plan)
    if change is None:
        return plan, None
    if change.action == "retrain":
        try:
            return plan, _replacement(workspace, shard, retrain=retrain, logits_of=logits_of)
        except BudgetError as error:
            if plan.request.mode != "auto":
                raise BudgetError(
                    f"The subject's rows are erased, but its shard can't be retrained: {error.message}",
                    remedy="The request stays open; finish it with --mode drop, which is free.",
                ) from error
            plan = as_drop(plan, reason=f"retraining shard {shard} is refused: {error.message}")
            record(workspace.ledger, plan)
            shard_cache.delete(workspace, shard)
    workspace.objects.delete(private_path(str(change.component)))
    return plan, None


def _replacement(workspace: Workspace, shard: int, *, retrain: Retrain, logits_of: LogitsOf) -> str:
    """A committed component of the shard that learnt from exactly the rows that are there now, its logits cached."""
    rows = read_partition(workspace.objects, workspace.shard_dir(shard)).ids
    attempts = attempts_of(workspace.ledger, shard)
    component = next((name for name in attempts if _learnt_from(workspace, name) == rows), None)
    if component is None:
        for name in attempts:
            workspace.objects.delete(private_path(name))
        component, logits_BC = retrain(shard)
        if component not in attempts_of(workspace.ledger, shard) or _learnt_from(workspace, component) != rows:
            raise VerificationError(
                f"Component {component}: expected one committed for shard {shard} that learnt from the rows that are "
                "left, got another.",
                remedy="The request stays open; run it again.",
            )
    else:
        logits_BC = None if _is_cached(workspace, component) else logits_of(component)
    cache = eval_cache.load(workspace)
    if cache is not None and logits_BC is not None:
        eval_cache.save(workspace, cache.with_component(component, logits_BC))
    return component


def _run(workspace: Workspace, composition: Composition, run_model: RunModel) -> None:
    """Cache the logits of a composition that the cache can't tell by itself."""
    cache = eval_cache.load(workspace)
    if cache is None or cache.covers(composition):
        return
    logits_BC = run_model(composition)
    if logits_BC is not None:
        eval_cache.save(workspace, cache.with_model(composition, logits_BC))


def _learnt_from(workspace: Workspace, component: str) -> tuple[str, ...] | None:
    """The ids of the examples that a component learnt from; None where its list is gone or damaged."""
    try:
        return tuple(workspace.objects.read_json(private_path(component))["examples"])
    except (VerificationError, KeyError, TypeError):
        return None


def _is_cached(workspace: Workspace, component: str) -> bool:
    cache = eval_cache.load(workspace)
    return cache is not None and component in cache.component_logits


def _composition(plan: RemovalPlan, before: ModelVersion, *, replacement: str | None) -> Composition:
    """The model without the subject: the others share a dropped one's weight; a replacement takes its place."""
    change, composition = change_of(plan), before.composition
    if change is None:
        return composition
    if replacement is None:
        return composition.without({str(change.component)})
    return composition.replacing(str(change.component), replacement)


def _metrics(workspace: Workspace, composition: Composition, classes: Sequence[str]) -> dict[str, Any] | None:
    """What a composition scores on the held-out rows that are left; None where the cache can't tell."""
    cache = eval_cache.load(workspace)
    return cache.metrics(composition, classes) if cache is not None and cache.covers(composition) else None
