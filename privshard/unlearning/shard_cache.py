"""The caches of the shards' constants, as erasure sees them: rows taken out, or the whole cache deleted.

Everything here is personal data, so a file that can't be understood is never kept where rows have to go.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

from privshard.core.errors import VerificationError
from privshard.store import rows
from privshard.store.layout import CACHE, cache_dir, constants_path, eval_cache_dir
from privshard.store.workspace import Workspace


def erase_rows(workspace: Workspace, shard: int, *, keep: Collection[str]) -> None:
    """Rewrite a shard's cache without every row that is not in `keep`, the ids that the shard holds by now.

    Doing it again changes nothing. The rows of the others stay as they are, bit for bit, so that a retraining needs no
    pass of the base. What can't be understood, or is damaged, might hold an erased row: it is deleted. So is the cache
    of a workspace that is held by a lease: a holder that stalled while rewriting it could put back what another erased.
    """
    objects, path = workspace.objects, constants_path(shard)
    in_place = objects.is_local and not workspace.ledger.is_shared
    for found in objects.list(cache_dir(shard)):
        if found != path or not in_place:
            objects.delete(found)
    if in_place and objects.exists(path):
        try:
            rows.rewrite(objects.local_path(path), keep=frozenset(keep))
        except VerificationError:
            objects.delete(path)


def delete(workspace: Workspace, shard: int) -> None:
    """Delete a shard's cache; nothing happens where there is none."""
    workspace.objects.delete_tree(cache_dir(shard))


def paths(workspace: Workspace) -> list[str]:
    """Everything below `cache/` that is not about held-out rows."""
    return [path for path in workspace.objects.list(CACHE) if not path.startswith(f"{eval_cache_dir()}/")]


def ids(workspace: Workspace, path: str) -> tuple[str, ...] | None:
    """The rows that a cache is about; None where it can't be understood."""
    if not workspace.objects.is_local:
        return None
    try:
        return rows.open_rows(workspace.objects.local_path(path)).ids
    except VerificationError:
        return None


def shard_of(path: str) -> int | None:
    """The shard whose cache lies at `path`; None where a shard's cache never lies.

    >>> shard_of("cache/shard=007/constants.safetensors"), shard_of("cache/shard=007/other")
    (7, None)
    """
    number = PurePosixPath(path).parent.name.removeprefix("shard=")
    return int(number) if number.isdigit() and constants_path(int(number)) == path else None
