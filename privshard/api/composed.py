"""The displacements that a composition runs: from component and edit files to tensors on a device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from privshard.composition.average import average
from privshard.composition.curvature import curved_average
from privshard.composition.members import members
from privshard.core.method import Method, origin
from privshard.core.model import Combine, Composition
from privshard.editing import sparse
from privshard.store.edits import load_edit
from privshard.store.layout import edit_path, edit_record_path
from privshard.store.workspace import Workspace


def displacements(
    workspace: Workspace, composition: Composition, *, method: Method, device: str
) -> list[tuple[float, dict[str, Tensor]]]:
    """(weight, displacement) of every model of which `composition` is the weighted mean: one for an average, one a
    component for an ensemble. The base's own where nothing displaces it."""
    found = []
    for weight, parts in members(composition):
        moved = {
            name: torch.from_numpy(array).to(device)
            for name, array in summed(workspace, parts, combine=composition.combine).items()
        }
        found.append((weight, {**origin(method, device=device), **moved}))
    return found


def summed(workspace: Workspace, parts: Mapping[str, float], *, combine: Combine = "average") -> dict[str, np.ndarray]:
    """The weighted sum of components and edits by parameter name; without edits, bit for bit what `average` gives, or
    with combine "curvature" what `curved_average` does.

    Empty for no parts; of edits alone, only what they move.
    """
    edits = {name for name in parts if workspace.objects.exists(edit_record_path(name))}
    weights = {name: weight for name, weight in parts.items() if name not in edits}
    moved = combined(workspace, weights, combine=combine)
    for edit in sorted(edits):
        for name, slot in read_edit(workspace, edit).items():
            delta = slot.dense() * np.float32(parts[edit])
            moved[name] = moved[name] + delta if name in moved else delta
    return moved


def combined(workspace: Workspace, weights: Mapping[str, float], *, combine: Combine) -> dict[str, np.ndarray]:
    """The displacement of shard components alone."""
    with workspace.objects.fetched({name: workspace.component_path(name) for name in weights}) as files:
        if combine != "curvature":
            return average(files, weights)
        kept = [name for name in weights if workspace.objects.exists(workspace.curvature_path(name))]
        with workspace.objects.fetched({name: workspace.curvature_path(name) for name in kept}) as curvatures:
            return curved_average(files, curvatures, weights)


def read_edit(workspace: Workspace, edit: str) -> dict[str, sparse.SparseSlot]:
    """A verified edit of the workspace."""
    _, arrays, header = load_edit(workspace.objects, edit)
    return sparse.from_arrays(arrays, header, place=edit_path(edit))
