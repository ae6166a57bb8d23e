"""The journal: a hash-chained table that is only ever appended to, one writer at a time."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any, TypeVar

import sqlalchemy as sql
from sqlalchemy.schema import CreateIndex, CreateTable

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.store.database import (
    begin_alone,
    create_alone,
    damage,
    explained,
    is_server,
    limit_waits,
    make_engine,
    readable,
    sqlite_path,
)
from privshard.store.disk import make_new
from privshard.store.ledger_schema import ENTRIES, GENESIS, SCHEMA_VERSION, Entry, seal
from privshard.store.server import LedgerInterruptedError
from privshard.store.waits import ledger_timeout_s

Result = TypeVar("Result")


class Journal:
    """Entries in a SQLite file or in a database of their own, appended in serialized transactions.

    Guarantees: a transaction's entries are all committed, durably, or none is; no two transactions overlap, in
    whatever thread or process. Threads and forked processes may share one object. A server that has answered before
    and goes away is waited for, up to `waits.ledger_timeout_s`: by every read, and by a transaction until it begins.

    fence: called inside every transaction before anything is written; it raises where this process may not write.
    """

    fence: Callable[[sql.Connection], None] | None = None

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self.place = readable(place)
        self.is_shared = is_server(place)
        self._path = sqlite_path(place)
        self._engine = make_engine(place)
        self._mine = threading.local()
        self._answered = False

    @staticmethod
    def create(place: str | os.PathLike[str], *, workspace_id: str) -> Journal:
        """A new journal, committed with its first entry; InputError where there is one."""
        journal = Journal(place)
        journal.make(workspace_id=workspace_id)
        return journal

    def make(self, *, workspace_id: str) -> None:
        """Make the journal where there is none, with its first entry; InputError where there is one.

        A SQLite file appears whole; one that is there without an entry is completed.
        """
        if self._path is not None and self._path.parent.is_dir() and not self._path.exists():
            if not make_new(self._path, lambda draft: Journal.create(draft, workspace_id=workspace_id).close()):
                raise self._there_is_one()
            return
        with explained(self.place), self._engine.begin() as connection:
            create_alone(connection)
            connection.execute(CreateTable(ENTRIES, if_not_exists=True))
            for index in ENTRIES.indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
        with self.transaction():
            if self.entries(GENESIS):
                raise self._there_is_one()
            self.append(GENESIS, data={"workspace": workspace_id, "schema": SCHEMA_VERSION})

    def _there_is_one(self) -> InputError:
        return InputError(f"Expected no ledger at {self.place}, found one.", remedy="Open it instead.")

    @staticmethod
    def open(place: str | os.PathLike[str]) -> Journal:
        """An existing journal; InputError where there is none, or where a newer privshard wrote it."""
        journal = Journal(place)
        first = journal._first()
        if first is None:
            raise InputError(
                f"Expected a ledger at {journal.place}, found none.", remedy="Make a workspace with `privshard train`."
            )
        schema = first.data.get("schema")
        if not isinstance(schema, int):
            raise first.damaged("it names no schema")
        if schema > SCHEMA_VERSION:
            raise InputError(
                f"Expected a ledger of schema {SCHEMA_VERSION} or older at {journal.place}, got schema {schema}.",
                remedy="Upgrade privshard to the version that wrote it.",
            )
        return journal

    @staticmethod
    def exists(place: str | os.PathLike[str]) -> bool:
        """Whether there is a journal; one whose creation was interrupted is none."""
        return Journal(place).is_made

    @property
    def is_made(self) -> bool:
        """Whether its first entry is there by now."""
        try:
            return self._first() is not None
        except ResourceError:
            if self._path is None or self._path.is_file():
                raise
            return False  # the file was taken away while it was being looked at

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """For the length of the block, this thread keeps its connection to a SQLite file: it opens none for every read
        and transaction, and no closing folds the log back into the file. What is guaranteed does not change."""
        if self._engine.dialect.name != "sqlite" or self._kept is not None:
            yield
            return
        with explained(self.place), self._engine.connect() as connection:
            self._mine.kept = (os.getpid(), connection)
            try:
                yield
            finally:
                self._mine.kept = None

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @property
    def genesis(self) -> Entry:
        """The first entry, which names the workspace."""
        found = self.entries(GENESIS)
        if not found:
            raise VerificationError(
                f"Expected a sound ledger at {self.place}, got one whose first entry is missing.",
                remedy="Restore it from a backup.",
            )
        return found[0]

    @property
    def head(self) -> tuple[int, str]:
        """(seq, digest) of the last entry."""
        last = self._read(_last)
        return (last.seq, last.digest) if last else (0, "")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One commit point for everything this thread appends in the block; an exception undoes all of it.

        Blocks may be nested; the outermost one commits. Where the server goes away at the commit, its answer is found
        out: the block ends well only if everything was committed, in LedgerInterruptedError only if nothing was.
        """
        if self._current is not None:
            yield
            return
        connection = self._waiting(self._begin)
        with explained(self.place), self._returned(connection):
            self._mine.connection, self._mine.last = connection, None
            try:
                yield
                self._commit(connection, self._mine.last)
            finally:
                self._mine.connection = None

    def run(self, work: Callable[[sql.Connection], Result]) -> Result:
        """`work` in a transaction of its own, which leaves the entries alone. It is repeated where the server goes
        away, even at the commit, so `work` must do no harm when it is done twice."""

        def once() -> Result:
            with explained(self.place), self._engine.begin() as connection:
                limit_waits(connection)
                return work(connection)

        return self._waiting(once)

    def repeat(self, verb: Callable[[], Result]) -> Result:
        """`verb()`, again and again while the server is away, since nothing of it was committed then; inside of a
        transaction once, because that would have to begin again as a whole."""
        return verb() if self._current is not None else self._waiting(verb)

    def clock_offset_s(self) -> float:
        """How far the server's clock is ahead of this machine's, by the quickest of three answers."""

        def ask(connection: sql.Connection) -> float:
            answers = []
            for _ in range(3):
                asked = time.time()
                server = connection.scalar(sql.select(sql.func.extract("epoch", sql.func.clock_timestamp())))
                answered = time.time()
                answers.append((answered - asked, float(server or 0) - (asked + answered) / 2))
            return min(answers)[1]

        return self._read(ask)

    def append(
        self, kind: str, *, data: Mapping[str, Any], run_id: str | None = None, shard: int | None = None
    ) -> None:
        """Append one entry, sealed to the one before it. A run id occurs once in a kind."""
        with self.transaction(), self._connection() as connection:
            entry = seal(_last(connection), kind=kind, shard=shard, run_id=run_id, data=data)
            row = dict(zip(ENTRIES.columns.keys(), astuple(entry), strict=True))
            connection.execute(sql.insert(ENTRIES), row)
            self._mine.last = entry

    def entries(self, *kinds: str, shard: int | None = None, run_id: str | None = None) -> list[Entry]:
        """Entries of these kinds (none named: of all), shard and run, in order."""
        query = sql.select(ENTRIES).order_by(ENTRIES.c.seq)
        if kinds:
            query = query.where(ENTRIES.c.kind.in_(kinds))
        if shard is not None:
            query = query.where(ENTRIES.c.shard == shard)
        if run_id is not None:
            query = query.where(ENTRIES.c.run_id == run_id)
        return self._read(lambda connection: [Entry.read(row) for row in connection.execute(query)])

    def last(self, kind: str) -> Entry | None:
        """The last entry of a kind, without reading those before it."""
        query = sql.select(ENTRIES).where(ENTRIES.c.kind == kind).order_by(ENTRIES.c.seq.desc()).limit(1)
        row = self._read(lambda connection: connection.execute(query).first())
        return None if row is None else Entry.read(row)

    def discard(self, *, only: set[str]) -> None:
        """Delete all entries, provided that they are of the kinds `only`; InputError where others are there."""
        with self.transaction(), self._connection() as connection:
            others = sorted({entry.kind for entry in self.entries()} - only)
            if others:
                raise InputError(f"Expected a ledger that was never used, got one with entries: {', '.join(others)}.")
            connection.execute(sql.delete(ENTRIES))

    def damage(self) -> list[str]:
        """What the database itself finds broken below the entries."""
        return self._read(damage)

    @property
    def _current(self) -> sql.Connection | None:
        return getattr(self._mine, "connection", None)

    @contextmanager
    def _connection(self) -> Iterator[sql.Connection]:
        """This thread's transaction, or a connection for one read."""
        if self._current is not None:
            yield self._current
        else:
            with explained(self.place), self._returned(self._kept or self._engine.connect()) as connection:
                yield connection

    @property
    def _kept(self) -> sql.Connection | None:
        """The connection that this thread keeps; a forked process has none of its parent's."""
        process, connection = getattr(self._mine, "kept", None) or (None, None)
        return connection if process == os.getpid() else None

    @contextmanager
    def _returned(self, connection: sql.Connection) -> Iterator[sql.Connection]:
        """Close the connection after the block, or, where it is kept, end what it was in the middle of."""
        try:
            yield connection
        finally:
            if connection is self._kept:
                connection.rollback()
            else:
                connection.close()

    def _read(self, query: Callable[[sql.Connection], Result]) -> Result:
        """One read, repeated where the server goes away; inside of a transaction it belongs to that one."""

        def once() -> Result:
            with self._connection() as connection:
                return query(connection)

        return once() if self._current is not None else self._waiting(once)

    def _begin(self) -> sql.Connection:
        """A connection in a transaction that is alone, and that this process may still write."""
        with explained(self.place):
            connection = self._kept or self._engine.connect()
            try:
                begin_alone(connection)
                if self.fence is not None:
                    self.fence(connection)
            except BaseException:
                with self._returned(connection):
                    raise
            return connection

    def _commit(self, connection: sql.Connection, last: Entry | None) -> None:
        """Commit; where the answer is lost, look for the last entry, once the old transaction is over."""
        try:
            with explained(self.place):
                connection.commit()
        except LedgerInterruptedError as error:
            connection.invalidate()
            if last is not None and self._was_committed(last, error):
                return
            raise

    def _was_committed(self, entry: Entry, error: LedgerInterruptedError) -> bool:
        try:
            return self._waiting(lambda: self._holds(entry))
        except LedgerInterruptedError:
            raise ResourceError(
                f"The ledger at {self.place} went away during a commit; whether it was made isn't known yet. "
                f"{error.message}",
                remedy=error.remedy,
            ) from error

    def _holds(self, entry: Entry) -> bool:
        """Whether an entry is committed. Waiting to be alone waits for the end of the transaction that may be at it."""
        with explained(self.place), self._engine.connect() as connection:
            begin_alone(connection)
            return connection.scalar(sql.select(ENTRIES.c.digest).where(ENTRIES.c.seq == entry.seq)) == entry.digest

    def _waiting(self, work: Callable[[], Result]) -> Result:
        """`work()`, tried again for a while where a server that has answered before does not."""
        deadline = time.monotonic() + ledger_timeout_s()
        while True:
            try:
                result = work()
            except LedgerInterruptedError:
                if not self._answered or time.monotonic() > deadline:
                    raise
            else:
                self._answered = True
                return result
            time.sleep(random.uniform(0.1, 0.5))

    def _first(self) -> Entry | None:
        """The first entry; None where there is no journal, or one that was never completed."""
        if self._path is not None and not self._path.is_file():
            return None
        tables = self._read(lambda connection: sql.inspect(connection).get_table_names())
        if self._path is not None and tables and ENTRIES.name not in tables:
            raise VerificationError(
                f"Expected a ledger at {self.place}, got a database without its table.",
                remedy="Restore it from a backup.",
            )
        if ENTRIES.name not in tables:
            return None
        query = sql.select(ENTRIES).order_by(ENTRIES.c.seq).limit(1)
        row = self._read(lambda connection: connection.execute(query).first())
        first = None if row is None else Entry.read(row)
        if first is not None and first.kind != GENESIS:
            raise first.damaged("the first entry names the workspace")
        return first


def _last(connection: sql.Connection) -> Entry | None:
    row = connection.execute(sql.select(ENTRIES).order_by(ENTRIES.c.seq.desc()).limit(1)).first()
    return None if row is None else Entry.read(row)
