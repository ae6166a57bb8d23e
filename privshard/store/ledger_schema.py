"""The ledger's one table, its sealed rows, and how a database is opened and locked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import event, exc
from sqlalchemy.pool import NullPool

from privshard.core.digest import canonical_json, json_digest
from privshard.core.errors import InputError, ResourceError, VerificationError

SCHEMA_VERSION = 1
GENESIS = "workspace"
CLOCK_NOTE = "clock_read"
_BUSY_TIMEOUT_S = 60

METADATA = sql.MetaData()
ENTRIES = sql.Table(
    "entries",
    METADATA,
    sql.Column("seq", sql.BigInteger, primary_key=True, autoincrement=False),
    sql.Column("kind", sql.Text, nullable=False),
    sql.Column("shard", sql.Integer),
    sql.Column("run_id", sql.Text),
    sql.Column("payload", sql.Text, nullable=False),
    sql.Column("created", sql.Text, nullable=False),
    sql.Column("previous", sql.Text, nullable=False),
    sql.Column("digest", sql.Text, nullable=False),
    sql.UniqueConstraint("run_id", "kind", name="entries_run_id_kind"),
    sql.Index("entries_kind_shard", "kind", "shard"),
)


@dataclass(frozen=True)
class Entry:
    """One row: what happened (`kind`, `shard`, `run_id`, `payload`), when, and the digests that chain it."""

    seq: int
    kind: str
    shard: int | None
    run_id: str | None
    payload: str
    created: str
    previous: str
    digest: str

    @cached_property
    def data(self) -> dict[str, Any]:
        """The payload, parsed."""
        return json.loads(self.payload)

    @property
    def true_digest(self) -> str:
        """SHA-256 of the canonical JSON of every other column; `digest` says the same in a sound ledger."""
        return json_digest(astuple(self)[:-1])


def seal(previous: Entry | None, *, kind: str, shard: int | None, run_id: str | None, data: Mapping[str, Any]) -> Entry:
    """The entry that follows `previous`. Time never runs backwards: a clock that does is noted in the payload."""
    now = utc_now()
    created = max(now, previous.created) if previous else now
    noted = dict(data) if created == now else {**data, CLOCK_NOTE: now}
    try:
        payload = canonical_json(noted).decode()
    except (TypeError, ValueError) as error:
        raise InputError(f"Ledger entry {kind}: expected plain JSON without NaN or infinity: {error}.") from error
    seq, last = (previous.seq + 1, previous.digest) if previous else (1, "")
    unsealed = Entry(seq, kind, shard, run_id, payload, created, last, "")
    return replace(unsealed, digest=unsealed.true_digest)


def utc_now() -> str:
    """Now, as an ISO string of fixed width: text order is time order."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def make_engine(place: str | os.PathLike[str]) -> sql.Engine:
    """An engine for a SQLite file or a database URL. Connections are not pooled, so forks and threads may share it."""
    text = os.fspath(place)
    url = sql.make_url(text) if "://" in text else sql.URL.create("sqlite", database=text)
    if url.get_backend_name() != "sqlite":
        try:
            return sql.create_engine(url, poolclass=NullPool)
        except (ImportError, exc.ArgumentError) as error:
            raise ResourceError(
                f"Expected a driver for the ledger at {readable(text)}: {error}.",
                remedy="Install it (for PostgreSQL: pip install psycopg), or use a ledger on a local disk.",
            ) from error
    engine = sql.create_engine(
        url, poolclass=NullPool, connect_args={"timeout": _BUSY_TIMEOUT_S, "isolation_level": None}
    )
    event.listen(engine, "connect", _configure_sqlite)
    return engine


def readable(place: str | os.PathLike[str]) -> str:
    """The address of a ledger for people, without its password."""
    text = os.fspath(place)
    return sql.make_url(text).render_as_string(hide_password=True) if "://" in text else text


def sqlite_path(place: str | os.PathLike[str]) -> Path | None:
    """The file of a SQLite ledger, None for a database server."""
    text = os.fspath(place)
    if "://" not in text:
        return Path(text)
    url = sql.make_url(text)
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def begin_alone(connection: sql.Connection) -> None:
    """Open a transaction that no other writer's overlaps: what it reads stays true until it commits."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql(f"LOCK TABLE {ENTRIES.name} IN EXCLUSIVE MODE")


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn a database's failures into errors for people; errors of the block itself pass."""
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError) as error:
        raise ResourceError(
            f"Expected to use the ledger at {place}, but: {error.orig}.",
            remedy="Check that its disk has space and is writable (or that its server answers), and run again.",
        ) from error
    except exc.DatabaseError as error:
        raise VerificationError(
            f"Expected a sound ledger at {place}, but: {error.orig}.", remedy="Restore it from a backup."
        ) from error


def _configure_sqlite(connection: Any, _record: Any) -> None:
    """Durable writes beside concurrent reads; damaged text is read as such, so that its entry can be named."""
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()
