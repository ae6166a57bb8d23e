"""Some rows of a shard's constants, on the device that computes."""

from __future__ import annotations

import numpy as np
import torch

from privshard.core.method import Constants


def take(constants: Constants, rows: np.ndarray, *, device: torch.device) -> Constants:
    """The given rows (positions) of every constant, on `device`.

    The constants may lie elsewhere: in the CPU's memory, or mapped from a file, of which only these rows are then read.
    Consecutive rows are taken without a copy where they are on `device` already.
    """
    first = next(iter(constants.values()))
    home, start = first.device, int(rows[0])
    consecutive = bool((np.diff(rows) == 1).all())
    if consecutive and len(rows) == len(first) and home == device:
        return constants
    at = slice(start, start + len(rows)) if consecutive else torch.from_numpy(rows).to(home)
    return {name: tensor[at].to(device) for name, tensor in constants.items()}
