"""The lock of a workspace on a local disk: one holder at a time may change it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from privshard.core.errors import ResourceError
from privshard.store.disk import explain, make_folder

LOCK_NAME = ".lock"


class BusyError(ResourceError):
    """Another process holds the workspace."""


@contextmanager
def hold(workspace_root: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a workspace for the length of the block.

    Guarantees that no other `hold` of the same folder, in this process or another of this host, is inside its block;
    the operating system releases the lock when the holder dies. Not guaranteed across hosts that share a disk
    without shared locks. A second holder gets a ResourceError that names the first. Not re-entrant.
    """
    import fcntl

    if "://" in os.fspath(workspace_root):
        raise ResourceError(
            f"Expected a local folder to lock, got {workspace_root}.",
            remedy="Workspaces elsewhere are held by a lease in their ledger's database.",
        )
    path = Path(workspace_root) / LOCK_NAME
    try:
        make_folder(path.parent, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise explain(error, path) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy(path.parent, os.pread(descriptor, 4096, 0)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(describe_holder()).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def describe_holder() -> dict[str, str | int]:
    """Who holds: never the arguments of the command, which may name a subject."""
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "command": Path(sys.argv[0]).name or "python",
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def busy(root: str | os.PathLike[str], content: str | bytes | None, *, more: str = "") -> BusyError:
    """The error that names who holds a workspace, from what it wrote about itself."""
    try:
        holder = json.loads(content or "")
        who = "process {pid} on {host} ({command}, since {since})".format(**holder)
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return BusyError(
        f"Expected to change the workspace {os.fspath(root)} alone, but {who} is changing it. {more}".strip(),
        remedy="Wait until it is done, or end it, and run the command again.",
    )
