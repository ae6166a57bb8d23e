"""Components that were just trained, composed and scored in memory: what `tune` and `sweep` do after every training.

B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from privshard.composition.curvature import Held, by_curvature
from privshard.core.method import Constants, Method
from privshard.core.model import Combine
from privshard.training.gather import take
from privshard.training.shard import Trained


def right(
    method: Method,
    constants: Constants,
    components: Sequence[Trained],
    *,
    rule: Combine,
    rows_B: np.ndarray,
    labels_B: Tensor,
    max_rows: int,
    dtype: torch.dtype = torch.float32,
) -> int:
    """How many of the rows `rows_B` the components, composed by `rule`, classify as their labels say.

    Rows with logits that aren't finite count as wrong. labels_B: of all rows of `constants`, on the device that
    computes. max_rows: of one batch.
    """
    device = labels_B.device
    displacements = composed(components, rule=rule, device=device)
    total = 0
    for start in range(0, len(rows_B), max_rows):
        rows = rows_B[start : start + max_rows]
        batch = take(constants, rows, device=device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            each = [method.logits(batch, displacement).float() for displacement in displacements]
        logits_BC = torch.stack(each).mean(0)
        right_B = logits_BC.argmax(1) == labels_B[torch.from_numpy(rows).to(device)]
        total += int((right_B & torch.isfinite(logits_BC).all(1)).sum())
    return total


def composed(components: Sequence[Trained], *, rule: Combine, device: torch.device | str) -> list[dict[str, Tensor]]:
    """The displacements whose logits are averaged, of shards with equal weights: one a component for an ensemble, else
    their composition alone."""
    parts = [part.tensors for part in components]
    if rule == "ensemble":
        return [_on(part, device) for part in parts]
    if rule == "curvature":
        return [_on(_by_curvature(components), device)]
    return [_on({name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}, device)]


def _by_curvature(components: Sequence[Trained]) -> dict[str, Tensor]:
    ids = [f"{number:06d}" for number in range(len(components))]
    found = by_curvature(
        {i: _held(part.tensors) for i, part in zip(ids, components, strict=True)},
        {i: _held(part.curvature) for i, part in zip(ids, components, strict=True)},
        dict.fromkeys(ids, 1 / len(ids)),
        shapes={name: tuple(tensor.shape) for name, tensor in components[0].tensors.items()},
    )
    return {name: torch.from_numpy(array) for name, array in found.items()}


def _held(tensors: Mapping[str, Tensor]) -> Held:
    return Held({name: tensor.numpy() for name, tensor in tensors.items()})


def _on(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
