"""Making a workspace: held before anything is in it, so that nobody sees a half-made one or removes another's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from privshard.core.errors import InputError, PrivshardError
from privshard.store import layout
from privshard.store.clock import require_clock
from privshard.store.database import is_server
from privshard.store.leased import LeasedObjects
from privshard.store.ledger import Ledger
from privshard.store.ledger_place import claim, ledger_place, refuse_taken
from privshard.store.lock import LOCK_NAME, hold
from privshard.store.objects import ObjectStore
from privshard.store.probe import PROBE, require_rights
from privshard.store.secrets import create_secrets, insecure_secrets, keys_path
from privshard.store.shared_disk import refuse_shared_disk
from privshard.store.workspace import Workspace, load_keys


@contextmanager
def created(
    root: str | os.PathLike[str],
    *,
    recipe_yaml: str,
    recipe_digest: str,
    is_begun: Callable[[Workspace], bool],
    insecure_seed: int | None = None,
    ledger: str | None = None,
) -> Iterator[Workspace]:
    """The workspace for this recipe, a new one or the one that is there, held alone for the length of the block.

    Guarantees: it is held before anything is looked at or made, so of several processes that start at once one works
    and the others get a BusyError that names it. The facts "recipe_digest", "recipe_yaml", "insecure_seed" and "keys"
    are one commit point: before it an interrupted creation holds nothing, and the next one completes it. Where the
    place was empty and the creation or the block fails before `is_begun`, nothing stays behind; a place with anything
    in it is never emptied. Keys are drawn before any data is seen.

    ledger: a database URL, else `ledger.db` in the folder (`store.ledger_place`). insecure_seed: for tests, keys that
    anybody can derive; the workspace stays marked by it. InputError, showing both, where another recipe or seed is
    there, and where a recipe lies without the ledger of a workspace; ResourceError where the place can't hold a
    workspace: a ledger file on a shared disk, an object store without a database server, or one whose objects can't be
    listed, written, read and deleted.
    """
    objects = ObjectStore(root)
    place = ledger_place(objects, ledger)
    with _alone(objects, place) as (held_objects, book):
        fresh, workspace = _is_empty(objects), None
        if not book.is_made and objects.exists(layout.RECIPE):
            raise InputError(
                f"Expected a new folder or a workspace at {objects.root}, got one with a {layout.RECIPE} of its own.",
                remedy="Name another folder: a workspace's recipe would take the place of that one.",
            )
        try:
            claim(objects, place)
            workspace = _complete(held_objects, book, recipe_yaml, recipe_digest, insecure_seed)
            with workspace.held():
                yield workspace
        except Exception:
            if fresh and (workspace is None or not is_begun(workspace)):
                _take_back(objects, book)
            raise


@contextmanager
def _alone(objects: ObjectStore, place: str) -> Iterator[tuple[ObjectStore, Ledger]]:
    """Hold the place of a workspace, whatever is in it: its objects, and the ledger that it has or will have."""
    book = Ledger.at(place)
    if not is_server(place):
        refuse_shared_disk(Path(objects.root))
        with hold(objects.root):
            yield objects, book
        return
    refuse_taken(objects, place)  # before another workspace's holder is disturbed
    require_clock(book)
    with book.hold_lease(root=objects.address) as lease:
        if not objects.is_local:
            require_rights(objects)
        leased = LeasedObjects(objects.root, ledger=book)
        leased.hold_by(lease)
        try:
            yield leased, book
        finally:
            leased.hold_by(None)


def _complete(
    objects: ObjectStore, book: Ledger, recipe_yaml: str, recipe_digest: str, insecure_seed: int | None
) -> Workspace:
    """What there is of the workspace, checked, and what is missing of it, made."""
    if not book.is_made:
        if not book.is_shared and not objects.exists(layout.LEDGER):
            for name in layout.BESIDE_LEDGER:  # a reader may have made it beside a ledger that was taken back
                objects.delete(name)
        book.make(workspace_id=token_hex(16))
    with book.transaction():
        held = book.facts()
        new = "recipe_digest" not in held
        if not new:
            _check_same(objects.root, held, {"recipe_digest": recipe_digest, "insecure_seed": insecure_seed})
            keys = load_keys(book)
        else:
            keys = (
                create_secrets(book.workspace_id)
                if insecure_seed is None
                else insecure_secrets(book.workspace_id, insecure_seed)
            )
            book.put("recipe_yaml", recipe_yaml)
            book.put("insecure_seed", insecure_seed)
            book.put("keys", keys.fingerprint)
            book.put("recipe_digest", recipe_digest)
        workspace = Workspace(objects.root, book.workspace_id, objects, book, keys)
    if new or not objects.exists(layout.RECIPE):
        objects.write(layout.RECIPE, str(book.get("recipe_yaml")).encode())
    if new or not objects.exists(layout.MANIFEST):
        workspace.write_manifest()
    return workspace


def _is_empty(objects: ObjectStore) -> bool:
    """Whether nothing is there but the lock of whoever asks, what a reader of a ledger that was taken back made beside
    it, or what was left of trying out a store's rights."""
    if objects.is_local:
        place = Path(objects.root)
        return not place.exists() or {child.name for child in place.iterdir()} <= {LOCK_NAME, *layout.BESIDE_LEDGER}
    return all(path.startswith(PROBE) for path in objects.list())


def _take_back(objects: ObjectStore, book: Ledger) -> None:
    """Undo a creation. Whoever does holds the workspace, so nobody else has begun to use it."""
    identity = None
    try:
        if book.is_made:
            identity = book.workspace_id
            if not objects.is_local or not (Path(objects.root) / layout.LEDGER).exists():
                book.discard_unused()  # a file in the folder goes with it
    except PrivshardError:
        if book.is_shared:  # it still names what is there: the next creation completes it
            return
    if objects.is_local:
        _remove_folder(Path(objects.root))
    else:
        for path in objects.list():
            if not path.startswith(PROBE):
                objects.delete(path)
    if identity is not None:
        shutil.rmtree(keys_path(identity).parent, ignore_errors=True)


def _remove_folder(place: Path) -> None:
    """Remove a folder, its ledger first, so that nobody begins to read it, and its lock last: until then nobody else
    gets it, and whoever comes after makes another one."""
    (place / layout.LEDGER).unlink(missing_ok=True)
    for child in place.iterdir() if place.exists() else ():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        elif child.name != LOCK_NAME:
            child.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: somebody has begun to use the place anew
        (place / LOCK_NAME).unlink(missing_ok=True)
        place.rmdir()


def _check_same(root: str, held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name, value in asked.items():
        if held.get(name) != value:
            raise InputError(
                f"Workspace {root}: it was made with {name} {held.get(name)}, got {value}.",
                remedy="Use the recipe it was made with (recipe.yaml), or another folder.",
            )
