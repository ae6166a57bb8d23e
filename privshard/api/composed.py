"""The displacements that a composition runs: from component files to tensors on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from privshard.composition.average import average
from privshard.composition.members import members
from privshard.core.method import Method, origin
from privshard.core.model import Composition
from privshard.store.workspace import Workspace


def displacements(
    workspace: Workspace, composition: Composition, *, method: Method, device: str
) -> list[tuple[float, dict[str, Tensor]]]:
    """(weight, displacement) of every model of which `composition` is the weighted mean: one for an average, one a
    component for an ensemble. The base's own where nothing displaces it."""
    found = []
    for weight, parts in members(composition):
        paths = {name: workspace.objects.local_path(workspace.component_path(name)) for name in parts}
        moved = average(paths, parts)
        tensors = {name: torch.from_numpy(array).to(device) for name, array in moved.items()}
        found.append((weight, tensors or origin(method, device=device)))
    return found
