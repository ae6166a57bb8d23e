"""Databases of the ledger, SQLite and PostgreSQL: how one is opened, locked, examined and explained."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sql
from sqlalchemy import event, exc
from sqlalchemy.pool import NullPool

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.store.ledger_schema import ENTRIES
from privshard.store.server import LEDGER_ENV as LEDGER_ENV
from privshard.store.server import connect, explain_server
from privshard.store.waits import ledger_timeout_s

_BUSY_TIMEOUT_S = 60
_CREATION_LOCK = 0x70726976  # any number that others don't use
_CORRUPT = ("malformed", "no such table", "no such column", "not a database")


def make_engine(place: str | os.PathLike[str]) -> sql.Engine:
    """An engine for a SQLite file that is there, or a database URL. Connections are not pooled, so forks and threads
    may share it. None makes a file: whoever comes late to a ledger that was taken away finds nothing, not an empty one.
    """
    text = os.fspath(place)
    file = sqlite_path(text)
    if file is None:
        url = parse_url(text)
        try:
            engine = sql.create_engine(url, poolclass=NullPool, isolation_level="READ COMMITTED")
        except (ImportError, exc.ArgumentError) as error:
            raise ResourceError(
                f"Expected a driver for the ledger at {readable(text)}: {error}.",
                remedy="Install it (for PostgreSQL: pip install 'privshard[postgres]'), or use a ledger on a local "
                "disk.",
            ) from error
        event.listen(engine, "do_connect", connect)
        return engine
    name = f"file:{quote(os.path.abspath(file))}"
    engine = sql.create_engine(
        sql.URL.create("sqlite", database=name, query={"uri": "true", "mode": "rw"}),
        poolclass=NullPool,
        connect_args={"timeout": _BUSY_TIMEOUT_S, "isolation_level": None},
    )
    event.listen(engine, "connect", _configure_sqlite)
    return engine


def readable(place: str | os.PathLike[str]) -> str:
    """The address of a ledger for people, without its password."""
    text = os.fspath(place)
    if "://" not in text:
        return text
    url = parse_url(text)
    url = url.set(query={key: value for key, value in url.query.items() if "password" not in key})
    return url.render_as_string(hide_password=True)


def is_server(place: str | os.PathLike[str]) -> bool:
    """Whether a ledger's place is a database server, whose clients may be on any machine."""
    text = os.fspath(place)
    return "://" in text and sqlite_path(text) is None


def sqlite_path(place: str | os.PathLike[str]) -> Path | None:
    """The file of a SQLite ledger, None for a database server."""
    text = os.fspath(place)
    if "://" not in text:
        return Path(text)
    url = parse_url(text)
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def begin_alone(connection: sql.Connection) -> None:
    """Open a transaction that no other writer's overlaps: what it reads stays true until it commits, durably."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    limit_waits(connection)
    connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
    connection.exec_driver_sql(f"LOCK TABLE {ENTRIES.name} IN EXCLUSIVE MODE")


def limit_waits(connection: sql.Connection) -> None:
    """Let the server give up waiting for others' locks before we give up waiting for the server."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {math.ceil(ledger_timeout_s() * 1000)}")


def create_alone(connection: sql.Connection) -> None:
    """Let one client at a time create the table: a server's `IF NOT EXISTS` does not survive a race."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")


def damage(connection: sql.Connection) -> list[str]:
    """What the database itself finds broken below the entries: pages and indexes of a SQLite file."""
    if connection.dialect.name != "sqlite":
        return []
    found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(5)")]
    return [] if found == ["ok"] else [f"The database file is damaged: {problem}." for problem in found]


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn a database's failures into errors for people; errors of the block itself pass."""
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.ProgrammingError, exc.InternalError) as error:
        if any(sign in str(error.orig) for sign in _CORRUPT):
            raise _unsound(place, error) from error
        if is_server(place):
            raise explain_server(_one_line(error), place) from error
        raise ResourceError(
            f"Expected to use the ledger at {place}, but: {_one_line(error)}.",
            remedy="Check that its disk has space and is writable, and run again.",
        ) from error
    except (exc.DatabaseError, UnicodeDecodeError) as error:
        raise _unsound(place, error) from error


def _unsound(place: str, error: Exception) -> VerificationError:
    return VerificationError(
        f"Expected a sound ledger at {place}, but: {_one_line(error)}.", remedy="Restore it from a backup."
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", error)).split()).rstrip(".")


def parse_url(text: str) -> sql.URL:
    """A database URL with the driver that this package installs; InputError where it is none."""
    try:
        url = sql.make_url(text)
    except (exc.ArgumentError, ValueError) as error:
        raise InputError(
            "ledger: expected a database URL, got one that can't be read.",
            remedy="Write it as postgresql://user@host/database.",
        ) from error
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgres", "postgresql") else url


def _configure_sqlite(connection: Any, _record: Any) -> None:
    """Durable writes beside concurrent reads; damaged text is read as such, so that its entry can be named."""
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()
