"""One folder of an object store, as a store of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from privshard.store.objects import ObjectStore, checked


class Below(ObjectStore):
    """The objects of `store` in a folder, by their paths in it; `list` gives such paths too.

    Everything is done by way of `store`. So where that is held by a lease (`store.leased`), what is written here is
    fenced too, which a second store at the folder's own address would not be.
    """

    def __init__(self, store: ObjectStore, folder: str) -> None:
        super().__init__(store.root)
        self._store, self._prefix = store, checked(folder)

    def __repr__(self) -> str:
        return f"Below({self._store!r}, {self._prefix!r})"

    def __reduce__(self):
        return Below, (self._store, self._prefix)

    def read(self, path: str) -> bytes:
        """The bytes of the object at `path`."""
        return self._store.read(self._full(path))

    def write(self, path: str, data: bytes) -> None:
        """Write `data` at `path`, replacing what was there, whole or not at all."""
        self._store.write(self._full(path), data)

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        return self._store.exists(self._full(path))

    def list(self, prefix: str = "") -> list[str]:
        """Paths of all objects in the folder `prefix` and below, sorted."""
        found = self._store.list(self._full(prefix) if prefix else self._prefix)
        return [str(PurePosixPath(path).relative_to(self._prefix)) for path in found]

    def delete(self, path: str) -> None:
        """Delete the object at `path`; nothing happens where there is none."""
        self._store.delete(self._full(path))

    def delete_tree(self, prefix: str) -> None:
        """Delete the folder `prefix` with everything in it."""
        self._store.delete_tree(self._full(prefix))

    def names(self, prefix: str = "") -> dict[str, str]:
        """None: `store` knows under which name an object lies."""
        return {}

    def sweep(self) -> list[str]:
        """Delete what killed writers left half-written, in all of `store`."""
        return self._store.sweep()

    def local_path(self, path: str) -> Path:
        """Where the object lies on the local disk; ResourceError for an object store."""
        return self._store.local_path(self._full(path))

    @contextmanager
    def fetched(self, paths: Mapping[str, str]) -> Iterator[dict[str, Path]]:
        """Key -> a local file with the object at its path."""
        with self._store.fetched({key: self._full(path) for key, path in paths.items()}) as files:
            yield files

    def _full(self, path: str) -> str:
        return f"{self._prefix}/{checked(path)}"
