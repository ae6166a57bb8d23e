"""Tensor files: safetensors, whole or one tensor at a time; nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.core.errors import VerificationError

if TYPE_CHECKING:
    import numpy as np

    from privshard.store.objects import ObjectStore


def save_tensors(
    store: ObjectStore, path: str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays with their metadata as one safetensors object, whole or not at all."""
    import numpy as np
    from safetensors.numpy import save

    rows_first = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    store.write(path, save(rows_first, metadata=dict(metadata or {})))


def load_tensors(store: ObjectStore, path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name, and the metadata; VerificationError where the object is not a whole safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = store.read(path)
    try:
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return arrays, header.get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _foreign(f"{store.root}/{path}", error) from error


@contextmanager
def open_lazy(local_path: Path) -> Iterator[Any]:
    """A handle with `keys()`, `get_tensor(name)`, `get_slice(name)`, `metadata()`: one tensor in memory at a time."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(local_path, framework="numpy") as handle:
            yield handle
    except (SafetensorError, FileNotFoundError) as error:
        raise _foreign(str(local_path), error) from error


def _foreign(place: str, error: Exception) -> VerificationError:
    return VerificationError(
        f"Expected a whole safetensors file at {place}: {error}.", remedy="Restore it from a backup, or make it again."
    )
