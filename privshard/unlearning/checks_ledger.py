"""Checks of what the ledger says, and of the files that repeat it: manifest, recipe, models, receipts."""

from __future__ import annotations

from pathlib import PurePosixPath

from privshard.core.errors import VerificationError
from privshard.store.layout import RECIPE, model_path, receipt_path
from privshard.store.manifest import describe
from privshard.store.signing import SIGNATURE
from privshard.unlearning.evidence import Evidence, Finding
from privshard.unlearning.model_files import is_written


def ledger_chain(evidence: Evidence) -> Finding:
    """The chain of digests is whole, and holds the entry that the manifest saw last."""
    ledger, manifest = evidence.workspace.ledger, evidence.manifest
    anchor = (manifest["ledger"]["entries"], manifest["ledger"]["head"]) if manifest else None
    anchored = f"the manifest's entry {anchor[0]} among them" if anchor else "without an anchor"
    return Finding(ledger.verify_chain(anchor=anchor), f"{ledger.head[0]} entries in one chain, {anchored}.")


def manifest(evidence: Evidence) -> Finding:
    """The manifest is signed, and names the ledger's current model."""
    if evidence.manifest is None:
        problem = "manifest.json is missing, or was changed since it was written: its signature does not hold."
        return Finding([problem], "")
    expected = describe(evidence.workspace.ledger)
    stale = [
        key
        for key in ("workspace", "recipe", "public", "model", "components")
        if evidence.manifest.get(key) != expected[key]
    ]
    problems = [f"manifest.json is signed, but its {key} is not what the ledger says." for key in stale]
    return Finding(problems, "Signed, and it says what the ledger says.")


def recipe(evidence: Evidence) -> Finding:
    """`recipe.yaml` is the recipe that the ledger recorded."""
    held = evidence.workspace.objects.read(RECIPE)
    same = held == str(evidence.facts.get("recipe_yaml")).encode()
    return Finding(
        [] if same else [f"{RECIPE} is not the recipe that the workspace was made with."], "As it was recorded."
    )


def current_model(evidence: Evidence) -> Finding:
    """The current model's file says what the ledger says."""
    model = evidence.model
    path = model_path(model.version)
    if is_written(evidence.workspace, model):
        return Finding([], f"{path} says what the ledger says: {len(model.composition.weights)} components.")
    return Finding([f"{path} is missing, or is not the composition that the ledger recorded."], "")


def older_models(evidence: Evidence) -> Finding:
    """No other model file is there than the ledger's, and none names a component that is to be gone."""
    older = {model_path(model.version): model for model in evidence.workspace.ledger.models()}
    older.pop(model_path(evidence.model.version))
    problems, kept = [], 0
    for path in evidence.workspace.objects.list("models"):
        if path == model_path(evidence.model.version):
            continue
        kept += 1
        if path not in older:
            problems.append(f"{path} is no model version of the ledger.")
        elif not set(older[path].composition.weights) <= evidence.live:
            problems.append(f"{path} names a component that was taken out of the model.")
        elif not is_written(evidence.workspace, older[path]):
            problems.append(f"{path} is not the composition that the ledger recorded.")
    return Finding(problems, f"{kept} of {len(older)} earlier version(s) are kept; none names a removed component.")


def receipts(evidence: Evidence) -> Finding:
    """Every completed removal has its receipt, signed and as recorded, and a suppressed subject."""
    workspace, problems = evidence.workspace, []
    completed = {item.request.id: item for item in workspace.ledger.requests() if item.receipt is not None}
    suppressed = workspace.ledger.suppressed()
    for request, item in completed.items():
        try:
            signed = workspace.load_receipt(request)
        except VerificationError as error:
            problems.append(error.message)
            continue
        if {key: value for key, value in signed.items() if key != SIGNATURE} != item.receipt:
            problems.append(f"Receipt {request} is signed, but is not the one that the ledger recorded.")
        if item.request.subject_hash not in suppressed:
            problems.append(f"Receipt {request}: its subject is not on the suppression list.")
    for path in workspace.objects.list("receipts"):
        if path not in map(receipt_path, completed):
            problems.append(f"{path} belongs to no completed removal ({PurePosixPath(path).stem}).")
    return Finding(problems, f"{len(completed)} receipt(s), all signed and as recorded.")


def open_requests(evidence: Evidence) -> Finding:
    """No removal was begun and not finished."""
    waiting = [item for item in evidence.workspace.ledger.requests() if item.receipt is None]
    problems = [f"Removal {item.request.id} was asked for at {item.created} and is not finished." for item in waiting]
    return Finding(problems, "None is unfinished.")
