"""What a store lets this process do, tried out before anything is at stake."""

from __future__ import annotations

from secrets import token_hex

from privshard.core.errors import ResourceError, VerificationError
from privshard.store.objects import ObjectStore
from privshard.store.remote_errors import RIGHTS

PROBE = ".probe"
_CONTENT = b"privshard tries what it may do here; this object should be gone in a moment\n"


def require_rights(objects: ObjectStore) -> None:
    """ResourceError, naming what is missing, unless objects can be listed, written, read and deleted.

    Whoever can't delete can't erase, so without that right no row may be written. One small object is written; it
    stays only where deleting is refused. Not shown: that nothing keeps a copy. A bucket with versioning, object locks
    or replication does, and erasure doesn't reach those.
    """
    probe = f"{PROBE}-{token_hex(4)}"  # of this process alone: several may try at once
    objects.list(probe)
    objects.write(probe, _CONTENT)
    if objects.read(probe) != _CONTENT:
        raise ResourceError(
            f"Expected {objects.address} to return what was written, got something else.",
            remedy="Use a store that is consistent: a read after a write has to see it.",
        )
    try:
        objects.delete(probe)
    except ResourceError as error:
        raise ResourceError(
            f"Expected the right to delete in {objects.address}: without it nobody could be forgotten. {error.message}",
            remedy=f"Give credentials that may {RIGHTS}; then delete {probe} there.",
        ) from error
    if _is_readable(objects, probe):
        raise ResourceError(
            f"Expected {objects.address} to forget what is deleted, but it is still there: nobody could be forgotten.",
            remedy="Turn object locks and retention off, or use another bucket.",
        )


def _is_readable(objects: ObjectStore, probe: str) -> bool:
    try:
        objects.read(probe)
    except VerificationError:
        return False
    return True
