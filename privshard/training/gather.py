"""Some rows of a shard's constants, on the device that computes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from privshard.core.method import ROWS, Constants


def take(constants: Constants, rows: np.ndarray, *, device: torch.device, indexed: Collection[str] = ()) -> Constants:
    """The given rows (positions) of every constant, on `device`.

    The constants may lie elsewhere: in the CPU's memory, or mapped from a file, of which only these rows are then read.
    Consecutive rows are taken without a copy where they are on `device` already; of rows that are not, those of the
    `indexed` constants are only named, under `ROWS`.
    """
    first = next(iter(constants.values()))
    home, start = first.device, int(rows[0])
    consecutive = bool((np.diff(rows) == 1).all())
    if consecutive and len(rows) == len(first) and home == device:
        return constants
    if consecutive:
        return {name: tensor[start : start + len(rows)].to(device) for name, tensor in constants.items()}
    at = upload(rows, home)
    if home != device:
        indexed = ()
    batch = {name: tensor if name in indexed else tensor[at].to(device) for name, tensor in constants.items()}
    return batch | {ROWS: at} if indexed else batch


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on `device`, without waiting for what the device is doing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def download(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` in fp32 on the CPU; from a GPU into page-locked memory, which a copy fills many times as fast."""
    found = {
        name: torch.empty(tensor.shape, dtype=torch.float32, pin_memory=tensor.is_cuda)
        for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        found[name].copy_(tensor, non_blocking=True)
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return found
