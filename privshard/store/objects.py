"""The object store: named bytes in a local folder or below a URI, which appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.store.disk import LocalFolder, explain
from privshard.store.remote_uri import refuse_secrets


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

    It pickles as its address and its names, so it may be sent to workers. Plain local folders never import pyarrow.

    names: path -> the name under which its object really lies, for paths where that differs (`store.leased`). Whoever
    gets the names of one shard can read that shard without asking the ledger.
    """

    def __init__(self, uri_or_path: str | os.PathLike[str], *, names: Mapping[str, str] | None = None) -> None:
        text = os.fspath(uri_or_path)
        if text.startswith("file://"):
            text = unquote(urlsplit(text).path)
        self.is_local = "://" not in text
        if not self.is_local:
            refuse_secrets(text)
        self.root = str(Path(text).expanduser().resolve()) if self.is_local else text.rstrip("/")
        self._given_names = dict(names or {})

    def __repr__(self) -> str:
        return f"ObjectStore({self.root!r})"

    def __reduce__(self):
        return _reopen, (self.root, self.names())

    @property
    def address(self) -> str:
        """The root for people: a URI without its options."""
        return self.root if self.is_local else self.root.partition("?")[0]

    def names(self, prefix: str = "") -> dict[str, str]:
        """Path -> name, of the objects in the folder `prefix` and below that lie under another name."""
        within = f"{prefix}/" if prefix else ""
        return {path: name for path, name in self._names().items() if path.startswith(within)}

    def _names(self) -> Mapping[str, str]:
        return self._given_names

    def _at(self, path: str) -> str:
        """The name under which the object at `path` lies."""
        plain = checked(path)
        return self._names().get(plain, plain)

    @cached_property
    def _folder(self) -> _Folder:
        if self.is_local:
            return LocalFolder(Path(self.root))
        from privshard.store.remote import RemoteFolder

        return RemoteFolder(self.root)

    def read(self, path: str) -> bytes:
        """The bytes of the object at `path`."""
        return self._folder.read(self._at(path))

    def write(self, path: str, data: bytes) -> None:
        """Write `data` at `path`, replacing what was there, whole or not at all."""
        self._folder.write(checked(path), data)

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        return self._folder.exists(self._at(path))

    def list(self, prefix: str = "") -> list[str]:
        """Paths of all objects in the folder `prefix` and below, sorted; none where there is no such folder."""
        return self._folder.list(checked(prefix) if prefix else "")

    def delete(self, path: str) -> None:
        """Delete the object at `path`; nothing happens where there is none, so a deletion may be repeated."""
        self._folder.delete(checked(path))

    def delete_tree(self, prefix: str) -> None:
        """Delete the folder `prefix` with everything in it; nothing happens where there is none."""
        self._folder.delete_tree(checked(prefix))

    def sweep(self) -> list[str]:
        """Delete what killed writers left half-written; the paths. Only while no other process is writing."""
        return self._folder.sweep()

    def local_path(self, path: str) -> Path:
        """Where the object lies on the local disk; ResourceError for an object store."""
        if not self.is_local:
            raise ResourceError(
                f"Expected a local folder, got {self.root}.", remedy="Use a workspace on a local or mounted disk."
            )
        return Path(self.root) / checked(path)

    @contextmanager
    def fetched(self, paths: Mapping[str, str]) -> Iterator[dict[str, Path]]:
        """Key -> a local file with the object at its path, for readers that need files: where it lies in a local
        folder, a copy that is gone with the block elsewhere."""
        if self.is_local:
            yield {key: self.local_path(self._at(path)) for key, path in paths.items()}
            return
        with tempfile.TemporaryDirectory(prefix="privshard-fetched-") as folder:
            copies = {key: Path(folder) / str(number) for number, key in enumerate(paths)}
            for key, path in paths.items():
                content = self.read(path)
                try:
                    copies[key].write_bytes(content)
                except OSError as error:
                    raise explain(error, copies[key]) from error
            yield copies

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


def _reopen(root: str, names: Mapping[str, str]) -> ObjectStore:
    return ObjectStore(root, names=names)


def checked(path: str) -> str:
    """A relative path in its one spelling, or InputError.

    >>> checked("data/./eval")
    'data/eval'
    """
    parts = PurePosixPath(path)
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\0" in path or "\\" in path:
        raise InputError(f"object path: expected a relative path without '..', got {path!r}.")
    return str(parts)
