"""The lock of a workspace on a local disk: one holder at a time may change it."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from privshard.core.errors import ResourceError
from privshard.store.disk import explain, make_folder

LOCK_NAME = ".lock"
_TRIES = 50


class BusyError(ResourceError):
    """Another process holds the workspace."""


@contextmanager
def hold(workspace_root: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a workspace for the length of the block.

    Guarantees that no other `hold` of the same folder, in this process or another of this host, is inside its block;
    the operating system releases the lock when the holder dies. Not guaranteed across hosts that share a disk
    without shared locks. A second holder gets a ResourceError that names the first. Not re-entrant.
    """
    if "://" in os.fspath(workspace_root):
        raise ResourceError(
            f"Expected a local folder to lock, got {workspace_root}.",
            remedy="Workspaces elsewhere are held by a lease in their ledger's database.",
        )
    import fcntl

    descriptor = _lock(Path(workspace_root) / LOCK_NAME)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(describe_holder()).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor too
    finally:
        os.close(descriptor)


def _lock(path: Path) -> int:
    """An open descriptor of the lock file, locked. A holder may take the folder away with the file in it, so the lock
    counts only if the file is still the one at its path."""
    import fcntl

    for left in reversed(range(_TRIES)):
        new = not path.parent.exists()
        try:
            make_folder(path.parent, mode=0o700)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except (FileNotFoundError, FileExistsError) as error:  # the folder went while it was being made
            if not left:
                raise explain(error, path) from error
            continue
        except OSError as error:
            if new:
                with suppress(OSError):
                    path.parent.rmdir()
            raise explain(error, path) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise busy(path.parent, holder) from None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)
    raise busy(path.parent, None)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read_holder(descriptor: int) -> bytes:
    """What the holder wrote about itself; it does so a moment after it has the lock."""
    for _ in range(_TRIES):
        content = os.pread(descriptor, 4096, 0)
        if content:
            return content
        time.sleep(0.01)
    return b""


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
