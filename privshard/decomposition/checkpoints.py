"""Checkpoints of a running training: written whole, checked by digest, tied to what is being trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from privshard.core.errors import InputError, VerificationError
from privshard.models.architecture import HEADER, content_digest, read_header
from privshard.store.mapped import map_tensors, new_file

_KIND = "checkpoint"


def save_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], position: Mapping[str, int | str]) -> None:
    """Write float32 arrays with the position in the training that they belong to."""
    flat = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
    with new_file(path, {name: a.shape for name, a in flat.items()}, _metadata(position, "0" * 64)) as new:
        for name, array in new.arrays.items():
            array[...] = flat[name]
        new.metadata.update(_metadata(position, content_digest(new.arrays, position)))


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, int | str]] | None:
    """The arrays and the position; None where there is no checkpoint. A damaged one is a VerificationError."""
    if not path.exists():
        return None
    try:
        header = read_header(path) or {}
        arrays, position = map_tensors(path), header["position"]
    except (InputError, KeyError) as error:
        raise _damaged(path, str(error)) from None
    if header.get("kind") != _KIND or content_digest(arrays, position) != header["digest"]:
        raise _damaged(path, "another digest")
    return {name: array.copy() for name, array in arrays.items()}, position


def _metadata(position: Mapping[str, int | str], digest: str) -> dict[str, str]:
    return {HEADER: json.dumps({"kind": _KIND, "position": dict(position), "digest": digest}, sort_keys=True)}


def _damaged(path: Path, got: str) -> VerificationError:
    return VerificationError(
        f"Expected a whole checkpoint at {path}, got {got}.",
        remedy="Delete it: training goes on from the last phase that was finished.",
    )
