"""Model files: the composition of a version as JSON, for people and tools, written from the ledger."""

from __future__ import annotations

from typing import Any

from privshard.core.errors import VerificationError
from privshard.core.model import Composition
from privshard.store.layout import model_path
from privshard.store.views import ModelVersion
from privshard.store.workspace import Workspace


def describe_model(workspace: Workspace, version: int, composition: Composition) -> dict[str, Any]:
    """A model version as plain JSON: the base, the components with their weights, and what public rows taught."""
    public = workspace.ledger.get("public")
    return {
        "version": version,
        "digest": composition.digest,
        **composition.to_json(),
        **({} if public is None else {"public": public["digest"]}),
    }


def write_model(workspace: Workspace, model: ModelVersion) -> None:
    """Write a version's file; nothing happens where it says the same already."""
    if not is_written(workspace, model):
        workspace.objects.write_json(model_path(model.version), _described(workspace, model))


def is_written(workspace: Workspace, model: ModelVersion) -> bool:
    """Whether a version's file is there and says what the ledger says."""
    path = model_path(model.version)
    try:
        return workspace.objects.exists(path) and workspace.objects.read_json(path) == _described(workspace, model)
    except VerificationError:
        return False


def _described(workspace: Workspace, model: ModelVersion) -> dict[str, Any]:
    return describe_model(workspace, model.version, model.composition)
