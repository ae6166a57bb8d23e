"""Where a workspace's ledger is: its own file, or a database that it points to."""

from __future__ import annotations

import os

import sqlalchemy as sql

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.store import layout
from privshard.store.database import LEDGER_ENV, is_server, parse_url, readable
from privshard.store.ledger import Ledger
from privshard.store.objects import ObjectStore


def ledger_place(objects: ObjectStore, asked: str | None = None) -> str:
    """The file or database URL of a workspace's ledger.

    `ledger.db` in the folder where it is; else the database that is asked for, that the environment variable
    PRIVSHARD_LEDGER names, or that the workspace's `ledger.url` points to, which holds no password: the environment
    variable adds it (or ~/.pgpass). InputError, showing both, where `asked` is another ledger than the workspace has;
    ResourceError where a workspace that is no local folder names no database server.
    """
    place = _ledger_place(objects, asked)
    if not objects.is_local and not is_server(place):
        raise _needs_server(objects)
    return place


def _ledger_place(objects: ObjectStore, asked: str | None) -> str:
    from_environment = os.environ.get(LEDGER_ENV) or None
    pointer = _pointer(objects)
    if objects.is_local and objects.exists(layout.LEDGER):
        if asked is not None:
            raise _another(objects, has=layout.LEDGER, asked=asked)
        return str(objects.local_path(layout.LEDGER))
    if asked is not None:
        if pointer is not None and without_password(asked) != without_password(pointer):
            raise _another(objects, has=pointer, asked=asked)
        known = from_environment if parse_url(asked).password is None else None
        return known if known and without_password(known) == without_password(asked) else asked
    if from_environment or pointer:
        return from_environment or str(pointer)
    if not objects.is_local:
        raise _needs_server(objects)
    return str(objects.local_path(layout.LEDGER))


def claim(objects: ObjectStore, place: str) -> None:
    """Let the workspace point to its database before anything is in it; nothing happens for a file of its own.

    Who makes a ledger holds its database (`store.creation`), so two workspaces never claim one at a time. InputError as
    in `refuse_taken`.
    """
    if "://" in place and _pointer(objects) is None:
        refuse_taken(objects, place)
        objects.write(layout.LEDGER_URL, f"{without_password(place)}\n".encode())


def refuse_taken(objects: ObjectStore, place: str) -> None:
    """InputError where a database holds the ledger of a workspace that this one does not point to: one can't serve
    two."""
    if "://" not in place:
        return
    taken = Ledger.exists(place)  # asked first: who makes one for this workspace has written the pointer before
    if taken and _pointer(objects) is None:
        with Ledger.open(place) as ledger:
            owner = ledger.workspace_id
        raise InputError(
            f"The ledger at {readable(place)} belongs to another workspace ({owner}).",
            remedy="Give every workspace a database of its own, or open that workspace where it is.",
        )


def without_password(place: str) -> str:
    """A database URL as it may be written down."""
    url = parse_url(place)
    query = {key: value for key, value in url.query.items() if "password" not in key}
    return sql.URL.create(
        url.drivername, username=url.username, host=url.host, port=url.port, database=url.database, query=query
    ).render_as_string()


def _pointer(objects: ObjectStore) -> str | None:
    try:
        return objects.read(layout.LEDGER_URL).decode("utf-8", "replace").strip()
    except VerificationError:  # none is there, or none any more
        return None


def _needs_server(objects: ObjectStore) -> ResourceError:
    return ResourceError(
        f"Expected a database server for the ledger of {objects.root}: SQLite needs a local disk.",
        remedy=f"Give ledger: postgresql://… in the recipe, or set {LEDGER_ENV}.",
    )


def _another(objects: ObjectStore, *, has: str, asked: str) -> InputError:
    return InputError(
        f"Workspace {objects.root}: its ledger is {has}, got {without_password(asked)}.",
        remedy=f"Leave ledger out. Where the database has moved, change {layout.LEDGER_URL} in the workspace.",
    )
