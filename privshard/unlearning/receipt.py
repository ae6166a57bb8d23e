"""The receipt of a removal: what was done, which guarantee holds, and what it does not reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from privshard.core.model import Composition
from privshard.core.privacy import PrivacySpend
from privshard.core.removal import RemovalPlan
from privshard.store.chain import model_run_id
from privshard.store.views import ModelVersion
from privshard.unlearning.plan import change_of

MEANING: Mapping[str | None, str] = {
    "exact_drop": "The model is, bit for bit, the composition of the other components under public weights: nothing of "
    "the subject is in it, and nothing of its shard.",
    "exact_retrain_seeded": "The shard's component is, bit for bit, what the same seed, keys, shard, attempt and order "
    "give on data that never held the subject.",
    "fresh_retrain": "The shard's component was learnt with fresh randomness from everyone else: equal in distribution "
    "to one learnt on data that never held the subject.",
    "dp_bound": "The model was not changed; differential privacy bounds what it can reveal about the subject.",
    None: "No component of the model has learnt from the erased rows; the model was not changed.",
}
_COUNTED = (
    " All components are scaled by one noisy count of everybody, taken before the first training; what it can reveal "
    "is bounded by differential privacy and included in the spend."
)
OUT_OF_SCOPE = (
    "models that were exported or published before",
    "backups",
    "copies of the source data",
    "logs and reports outside the workspace",
)
METRICS_NOTE = (
    "On the held-out rows that are left; those are personal data, and no privacy guarantee covers these numbers."
)
_ADAPTIVE = "Claims for requests that depend on earlier releases rest on differential privacy alone."
_ADAPTIVE_WITHOUT = (
    "Claims for requests that depend on earlier releases could rest on differential privacy alone, and there is none."
)


def make_receipt(
    plan: RemovalPlan,
    *,
    before: ModelVersion,
    after: Composition,
    version_after: int,
    component_after: str | None,
    metrics_before: Mapping[str, Any] | None,
    metrics_after: Mapping[str, Any] | None,
    spend: PrivacySpend,
    statement: str,
    counted: bool,
    insecure: bool,
    bounded_edits: Sequence[str] = (),
) -> dict[str, Any]:
    """The receipt of a completed removal as plain JSON, unsigned.

    It holds no raw identifier. Its counts and the shard are confidential: it is for the subject, the operator and
    their auditors. Once completed, the subject is suppressed. component_after: what replaced a retrained component.
    spend: of the subject's shard, this removal included. counted: a noisy count that included the subject is
    in use. statement: of the model's guarantee by now. bounded_edits: those that stay and were learnt while the
    shard's component was in the model.
    """
    return {
        "id": plan.request.id,
        "subject_hash": plan.request.subject_hash,
        "mode": plan.request.mode,
        "status": "done",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "guarantee": plan.guarantee,
        "meaning": _meaning(plan, bounded_edits) + (_COUNTED if counted else ""),
        "actions": [asdict(action) for action in plan.actions],
        "component_after": component_after,
        "rows_erased": {"train": plan.num_train_rows, "eval": plan.num_eval_rows},
        "model_before": model_run_id(before.version),
        "model_after": model_run_id(version_after),
        "composition_before": before.composition.digest,
        "composition_after": after.digest,
        "metrics_before": metrics_before,
        "metrics_after": metrics_after,
        "metrics_note": METRICS_NOTE,
        "spend": asdict(spend),
        "statement": f"{statement}\n{_ADAPTIVE_WITHOUT if spend.epsilon is None else _ADAPTIVE}",
        "out_of_scope": list(OUT_OF_SCOPE),
        "suppressed": True,
        "insecure": insecure,
    }


def _meaning(plan: RemovalPlan, bounded_edits: Sequence[str]) -> str:
    """What the guarantee means, edits and locators included."""
    edits = sum(action.action == "drop_edit" for action in plan.actions)
    retired = sum(action.action == "retire_locator" for action in plan.actions)
    text = MEANING[plan.guarantee] if edits == 0 or change_of(plan) is not None else _EDITS_ALONE
    if edits:
        text += f" {edits} edit(s) were dropped, their images deleted; the model is without them, bit for bit."
    if retired:
        text += f" {retired} locator(s) were retired and deleted, with every edit whose neurons they chose."
    if bounded_edits:
        text += (
            f" {len(bounded_edits)} edit(s) that stay were learnt on a model with the shard's component; what they can "
            "reveal through it is bounded by differential privacy alone."
        )
    return text


_EDITS_ALONE = (
    "The model is, bit for bit, the composition of its components and of the other edits: no component has learnt from "
    "the subject, and no edit that is left was learnt from an image of the subject."
)
