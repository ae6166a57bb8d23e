"""Files of a local disk that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from privshard.core.errors import ResourceError, VerificationError

_TEMPORARY_SUFFIX = ".tmp"
_BESIDE = tuple(f"{_TEMPORARY_SUFFIX}{suffix}" for suffix in ("-wal", "-shm", "-journal"))


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what was there: a reader sees the old bytes or the new, never a part.

    Durable on return. A failure (a full disk, no permission) is a ResourceError and leaves no temporary file.
    """
    with _temporary(path, data, mode=0o666) as temporary:
        os.replace(temporary, path)
        _sync_folder(path.parent)


@contextmanager
def stream_whole(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, at any offset, that appears at `path` when the block ends: whole, or not at all.

    Durable then, as `write_whole`. Where the block raises, what was at `path` stays and no temporary file is left.
    """
    with _temporary(path, b"", mode=0o666) as temporary:
        with temporary.open("r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)


def write_new(path: Path, data: bytes) -> bool:
    """Write `data` for the owner's eyes only (0600) unless `path` exists; whether it was written.

    Of several writers exactly one succeeds, and nobody ever sees a part of its file.
    """
    with _temporary(path, data, mode=0o600) as temporary:
        return _link_new(temporary, path)


def make_new(path: Path, fill: Callable[[Path], None]) -> bool:
    """Make a new file by `fill(draft)`, which gets the name of an empty one beside it; whether it was made.

    It appears at `path` whole, or not at all, durable then; of several writers exactly one succeeds.
    """
    with _temporary(path, b"", mode=0o666) as temporary:
        fill(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        return _link_new(temporary, path)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make `folder` and its parents durably; `mode` holds for `folder` itself, and only where it is new."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=mode, exist_ok=True)
    for place in new:
        _sync_folder(place.parent)


def explain(error: OSError, place: str | Path) -> ResourceError:
    """The ResourceError that says what failed at `place` and what a person can do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "Free space on that disk (or raise its quota) and run the same command again."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Make that place writable for this user, or choose another one."
    else:
        remedy = "Check that disk and run the same command again."
    return ResourceError(f"Expected to use {place}, but: {error.strerror or error}.", remedy=remedy)


@dataclass(frozen=True)
class LocalFolder:
    """Objects as files below `root`. Paths have been checked by `ObjectStore`."""

    root: Path

    def read(self, path: str) -> bytes:
        """The bytes of an object."""
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise missing(path, self.root) from error
        except OSError as error:
            raise explain(error, self.root / path) from error

    def write(self, path: str, data: bytes) -> None:
        """Write an object, whole or not at all."""
        write_whole(self.root / path, data)

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        return (self.root / path).is_file()

    def list(self, prefix: str) -> list[str]:
        """Paths of the objects in the folder `prefix` and below, sorted."""
        files = (place for place in (self.root / prefix).rglob("*") if place.is_file() and not _is_temporary(place))
        return sorted(place.relative_to(self.root).as_posix() for place in files)

    def delete(self, path: str) -> None:
        """Delete an object; nothing happens where there is none."""
        try:
            (self.root / path).unlink(missing_ok=True)
            if (self.root / path).parent.is_dir():
                _sync_folder((self.root / path).parent)
        except OSError as error:
            raise explain(error, self.root / path) from error

    def delete_tree(self, prefix: str) -> None:
        """Delete the folder `prefix` with everything in it, temporary files included."""
        folder = self.root / prefix
        try:
            if folder.is_dir():
                shutil.rmtree(folder)
                _sync_folder(folder.parent)
        except OSError as error:
            raise explain(error, folder) from error

    def sweep(self) -> list[str]:
        """Delete the temporary files that killed writers left behind; their paths."""
        found = sorted(place for place in self.root.rglob(f".*{_TEMPORARY_SUFFIX}*") if _is_temporary(place))
        for place in found:
            place.unlink(missing_ok=True)
        return [place.relative_to(self.root).as_posix() for place in found]


def missing(path: str, place: str | Path) -> VerificationError:
    """The error for an object that should be there."""
    return VerificationError(
        f"Expected an object {path} in {place}, found none.",
        remedy="Restore it from a backup, or make it again with the command that wrote it.",
    )


@contextmanager
def _temporary(path: Path, data: bytes, *, mode: int) -> Iterator[Path]:
    """A durable temporary file with `data` beside `path`, gone afterwards whatever happens."""
    temporary = path.with_name(f".{path.name}.{token_hex(8)}{_TEMPORARY_SUFFIX}")
    try:
        make_folder(path.parent)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        raise explain(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_temporary(place: Path) -> bool:
    """Also of a database that was being made: it has files beside its own."""
    return place.name.startswith(".") and place.name.endswith((_TEMPORARY_SUFFIX, *_BESIDE))


def _link_new(temporary: Path, path: Path) -> bool:
    """Let `path` be another name of `temporary`, unless it is there; whether it wasn't."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    _sync_folder(path.parent)
    return True


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
