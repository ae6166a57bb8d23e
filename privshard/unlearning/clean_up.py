"""Cleaning up after the ledger: whatever it no longer names goes, whatever it names is written."""

from __future__ import annotations

from privshard.core.errors import VerificationError
from privshard.store.edits import keep_only
from privshard.store.layout import MANIFEST, model_path, receipt_path
from privshard.store.manifest import describe
from privshard.store.workspace import Workspace
from privshard.unlearning import eval_cache
from privshard.unlearning.live import live_components
from privshard.unlearning.model_files import is_written, write_model


def clean_up(workspace: Workspace) -> None:
    """Make the files agree with the ledger; doing it again changes nothing.

    Deleted: components that don't count any more with their example lists and cached logits, edits that the model
    doesn't name, locators that were retired, and files of model versions that name one of them. Written: the current
    model's file, the signed receipts, the manifest. It needs no knowledge of what was interrupted, so it finishes any
    removal that the ledger completed. The caller holds the workspace's lock, and adopts components that were written
    and not yet committed first. Before the first model nothing is deleted.
    """
    ledger = workspace.ledger
    model = ledger.current_model()
    if model is not None:
        live = live_components(ledger)
        for component in workspace.component_ids():
            if component not in live:
                workspace.delete_component(component)
        keep_only(workspace.objects, ledger)
        eval_cache.keep_components(workspace, live)
        for version in ledger.models():
            if not set(version.composition.weights) <= live:
                workspace.objects.delete(model_path(version.version))
        write_model(workspace, model)
    for item in ledger.requests():
        if item.receipt is not None and not _has_receipt(workspace, item.request.id):
            workspace.save_receipt(item.request.id, item.receipt)
    workspace.write_manifest()


def is_clean(workspace: Workspace) -> bool:
    """Whether the current model's file and the manifest say what the ledger says."""
    model = workspace.ledger.current_model()
    try:
        manifest = workspace.objects.read_json(MANIFEST)
    except VerificationError:
        return False
    return (model is None or is_written(workspace, model)) and manifest == workspace.sign(describe(workspace.ledger))


def _has_receipt(workspace: Workspace, request_id: str) -> bool:
    """Whether a signed receipt is there. A changed one is for `verify` to report, a missing one is written."""
    return workspace.objects.exists(receipt_path(request_id))
