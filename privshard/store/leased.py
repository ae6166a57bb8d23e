"""Objects of a workspace that is held by a lease: what is rewritten gets a new name each time, and the ledger says
which one counts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from secrets import token_hex

from privshard.core.errors import ResourceError, VerificationError
from privshard.store.layout import REWRITTEN
from privshard.store.lease import Lease
from privshard.store.ledger import Ledger
from privshard.store.objects import ObjectStore, checked

_GENERATION = re.compile(r"\.g(\d{6,})-[0-9a-f]{8}(?=\.|$)")


class LeasedObjects(ObjectStore):
    """An `ObjectStore` whose writers may lose the right to write at any moment, even while a write is on its way.

    Guarantees: an object that is rewritten in place (`layout.REWRITTEN`: rows, caches and unfinished locators, all of
    them personal data) counts from the ledger row that names it, which only the holder of the lease can write, and
    whose object was stored whole before. An object is deleted only after the ledger has ceased to name it, and never
    one of a later holder. So a write or deletion that arrives after its sender lost the lease changes nothing that is
    read; the next holder deletes it, and `verify` reports it. Everything else is content-addressed, written again from
    the ledger, or the record of one run, which nobody else writes: one that arrives after an erasure stays until the
    next.

    Outside of `Workspace.hold` rewritten objects can only be read.
    """

    def __init__(self, root: str | os.PathLike[str], *, ledger: Ledger) -> None:
        super().__init__(root)
        self._ledger = ledger
        self._known: dict[str, str] | None = None
        self._lease: Lease | None = None

    def hold_by(self, lease: Lease | None) -> None:
        """Write by this lease from now on; None: read only."""
        self._lease, self._known = lease, None

    def read(self, path: str) -> bytes:
        """The bytes of the object at `path`; the present ones, where another process rewrote it meanwhile."""
        name = self._at(path)
        try:
            return self._folder.read(name)
        except VerificationError:
            self._known = None
            if self._at(path) == name:
                raise
            return self._folder.read(self._at(path))

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`, under the name that it has now."""
        if super().exists(path):
            return True
        name, self._known = self._at(path), None
        return self._at(path) != name and super().exists(path)

    def write(self, path: str, data: bytes) -> None:
        """Write `data` at `path`, whole or not at all; ResourceError where the lease is lost."""
        path = checked(path)
        if not _is_rewritten(path):
            self._require(path)
            self._folder.write(path, data)
            return
        lease = self._holding(path)
        old, new = self._names().get(path), _versioned(path, lease.generation)
        self._folder.write(new, data)
        self._name({path: new})
        if old is not None:
            self._folder.delete(old)

    def delete(self, path: str) -> None:
        """Delete the object at `path`; nothing happens where there is none. ResourceError where the lease is lost."""
        name = self._at(path)
        self._require(path)
        self._name({checked(path): None})
        self._folder.delete(name)

    def delete_tree(self, prefix: str) -> None:
        """Delete the folder `prefix` with everything in it that is not of a later holder."""
        prefix = checked(prefix)
        self._require(prefix)
        self._name(dict.fromkeys(self.names(prefix)))
        if not _is_rewritten(f"{prefix}/"):
            self._folder.delete_tree(prefix)
            return
        for name in self._folder.list(prefix):
            if _generation(name) <= self._holding(prefix).generation:
                self._folder.delete(name)

    def list(self, prefix: str = "") -> list[str]:
        """Paths of all objects in the folder `prefix` and below, sorted. What lies there and is named by nobody is
        listed under the name it has."""
        paths = {name: path for path, name in self._names().items()}
        return sorted(paths.get(name, name) for name in super().list(prefix))

    def sweep(self) -> list[str]:
        """Delete what earlier holders wrote and never named, or did not come to delete; the names."""
        left, named = super().sweep(), set(self._names().values())
        if self._lease is not None:
            for folder in REWRITTEN:
                for name in self._folder.list(folder):
                    if name not in named and 0 < _generation(name) < self._lease.generation:
                        self._folder.delete(name)
                        left.append(name)
        return left

    def _names(self) -> Mapping[str, str]:
        if self._known is None:
            self._known = self._ledger.object_names()
        return self._known

    def _name(self, changes: dict[str, str | None]) -> None:
        """Let the ledger name other objects: the commit point of whatever was written or is to go."""
        changes = {path: name for path, name in changes.items() if self._names().get(path) != name}
        if changes:
            self._ledger.name_objects(changes)
            kept = {path: name for path, name in self._names().items() if path not in changes}
            self._known = kept | {path: name for path, name in changes.items() if name is not None}

    def _require(self, path: str) -> None:
        """The lease has to be held for what is rewritten; and by whoever has taken it, for all else too."""
        if _is_rewritten(f"{path}/"):
            self._holding(path)
        elif self._lease is not None:
            self._lease.require()

    def _holding(self, path: str) -> Lease:
        if self._lease is None:
            raise ResourceError(
                f"Expected to hold the workspace {self.root} for writing {path}.", remedy="Use Workspace.hold()."
            )
        self._lease.require()
        return self._lease


def _versioned(path: str, generation: int) -> str:
    """A name for `path` that nobody wrote before: `data/eval/part-0.parquet` -> `data/eval/part-0.g000002-….parquet`"""
    place = PurePosixPath(path)
    return str(place.with_name(f"{place.stem}.g{generation:06d}-{token_hex(4)}{place.suffix}"))


def _generation(name: str) -> int:
    """The generation of the holder that wrote an object; 0 for a name that no holder gives."""
    found = _GENERATION.search(PurePosixPath(name).name)
    return int(found[1]) if found else 0


def _is_rewritten(path: str) -> bool:
    return path.startswith(tuple(f"{folder}/" for folder in REWRITTEN))
