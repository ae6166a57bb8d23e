"""What was learnt from public rows, a starting head or a core: kept under its digest, never removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from privshard.core.digest import tensors_digest
from privshard.core.errors import VerificationError
from privshard.store.layout import PUBLIC, public_path
from privshard.store.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    import numpy as np

    from privshard.store.objects import ObjectStore


def public_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The digest that names a set of public parts."""
    return tensors_digest(arrays, "public parts")


def save_public_parts(store: ObjectStore, arrays: Mapping[str, np.ndarray]) -> str:
    """Write the parts; their digest. Others, which an interrupted first training left, are deleted."""
    digest = public_digest(arrays)
    save_tensors(store, public_path(digest), arrays)
    for path in store.list(PUBLIC):
        if path != public_path(digest):
            store.delete(path)
    return digest


def load_public_parts(store: ObjectStore, digest: str) -> dict[str, np.ndarray]:
    """The parts of this digest; VerificationError where they are missing, damaged or others."""
    arrays, _ = load_tensors(store, public_path(digest))
    found = public_digest(arrays)
    if found != digest:
        raise VerificationError(
            f"{public_path(digest)}: expected tensors of this digest, got {found}.",
            remedy="Restore it from a backup: every component was learnt around it.",
        )
    return arrays
