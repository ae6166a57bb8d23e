"""The object store: named bytes in a local folder or below a URI, which appear whole or not at all."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.store.disk import LocalFolder


class _Folder(Protocol):
    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> None: ...
    def exists(self, path: str) -> bool: ...
    def list(self, prefix: str) -> list[str]: ...
    def delete(self, path: str) -> None: ...
    def delete_tree(self, prefix: str) -> None: ...
    def sweep(self) -> list[str]: ...


class ObjectStore:
    """Objects by relative path ("models/v0001.json") in a local folder or below a URI.

    Guarantees: an object is read whole, as some writer wrote it, or not at all; a local write is durable on return.
    Not guaranteed: an order between writers of one path. A path with "..", an absolute or an empty one is an
    InputError; a place that fails is a ResourceError; an object that is not there is a VerificationError.

    It pickles as its address, so it may be sent to workers. Plain local folders never import pyarrow.
    """

    def __init__(self, uri_or_path: str | os.PathLike[str]) -> None:
        text = os.fspath(uri_or_path)
        if text.startswith("file://"):
            text = unquote(urlsplit(text).path)
        self.is_local = "://" not in text
        self.root = str(Path(text).expanduser().resolve()) if self.is_local else text.rstrip("/")

    def __repr__(self) -> str:
        return f"ObjectStore({self.root!r})"

    def __reduce__(self):
        return ObjectStore, (self.root,)

    @cached_property
    def _folder(self) -> _Folder:
        if self.is_local:
            return LocalFolder(Path(self.root))
        from privshard.store.remote import RemoteFolder

        return RemoteFolder(self.root)

    def read(self, path: str) -> bytes:
        """The bytes of the object at `path`."""
        return self._folder.read(_checked(path))

    def write(self, path: str, data: bytes) -> None:
        """Write `data` at `path`, replacing what was there, whole or not at all."""
        self._folder.write(_checked(path), data)

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        return self._folder.exists(_checked(path))

    def list(self, prefix: str = "") -> list[str]:
        """Paths of all objects in the folder `prefix` and below, sorted; none where there is no such folder."""
        return self._folder.list(_checked(prefix) if prefix else "")

    def delete(self, path: str) -> None:
        """Delete the object at `path`; nothing happens where there is none, so a deletion may be repeated."""
        self._folder.delete(_checked(path))

    def delete_tree(self, prefix: str) -> None:
        """Delete the folder `prefix` with everything in it; nothing happens where there is none."""
        self._folder.delete_tree(_checked(prefix))

    def sweep(self) -> list[str]:
        """Delete what killed writers left half-written; the paths. Only while no other process is writing."""
        return self._folder.sweep()

    def local_path(self, path: str) -> Path:
        """Where the object lies on the local disk; ResourceError for an object store."""
        if not self.is_local:
            raise ResourceError(
                f"Expected a local folder, got {self.root}.", remedy="Use a workspace on a local or mounted disk."
            )
        return Path(self.root) / _checked(path)

    def write_json(self, path: str, value: Any) -> None:
        """Write a JSON value for people: sorted keys, indented, no NaN."""
        text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        self.write(path, text.encode() + b"\n")

    def read_json(self, path: str) -> Any:
        """Inverse of `write_json`; VerificationError where the object is not JSON."""
        try:
            return json.loads(self.read(path))
        except ValueError as error:
            raise VerificationError(
                f"Expected JSON in {path} of {self.root}: {error}.", remedy="Restore it from a backup."
            ) from error


def _checked(path: str) -> str:
    """A relative path in its one spelling, or InputError."""
    parts = PurePosixPath(path)
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\0" in path or "\\" in path:
        raise InputError(f"object path: expected a relative path without '..', got {path!r}.")
    return str(parts)
