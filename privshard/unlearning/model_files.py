"""Model files: the composition of a version as JSON, for people and tools, written from the ledger."""

from __future__ import annotations

from typing import Any

from privshard.core.errors import VerificationError
from privshard.store.layout import model_path
from privshard.store.views import ModelVersion
from privshard.store.workspace import Workspace


def describe_model(model: ModelVersion) -> dict[str, Any]:
    """A model version as plain JSON: the base, and the components with their weights."""
    return {"version": model.version, "digest": model.composition.digest, **model.composition.to_json()}


def write_model(workspace: Workspace, model: ModelVersion) -> None:
    """Write a version's file; nothing happens where it says the same already."""
    if not is_written(workspace, model):
        workspace.objects.write_json(model_path(model.version), describe_model(model))


def is_written(workspace: Workspace, model: ModelVersion) -> bool:
    """Whether a version's file is there and says what the ledger says."""
    path = model_path(model.version)
    try:
        return workspace.objects.exists(path) and workspace.objects.read_json(path) == describe_model(model)
    except VerificationError:
        return False
