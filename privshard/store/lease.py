"""The lease of a workspace: a row in the ledger's database says who may change it, and a silent holder loses it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.schema import CreateTable

from privshard.core.errors import ResourceError
from privshard.store.database import create_alone
from privshard.store.lock import busy, describe_holder
from privshard.store.waits import LEASE_ENV, lease_s

if TYPE_CHECKING:
    from privshard.store.journal import Journal

LEASES = sql.Table(
    "lease",
    sql.MetaData(),
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("generation", sql.BigInteger, nullable=False),
    sql.Column("holder", sql.Text),
    sql.Column("ttl_s", sql.Double, nullable=False),
    sql.Column("renewed", sql.Double, nullable=False),
)
_ROW = 1
_NOW = sql.func.extract("epoch", sql.func.clock_timestamp())  # the database's clock: no machine's own is trusted


class Lease:
    """The right to change a workspace, for as long as it is renewed.

    generation: counts the holders; it never goes back, so it tells a holder from every later one. A holder that was
    silent for longer than its lease may have been followed by another. It can't do harm then: `fence` refuses its
    transactions inside the database, `require` its writes to storage before they are sent, and a write that was on its
    way all the while lands under a name of its own generation (`store.leased`).
    """

    def __init__(self, journal: Journal, *, root: str) -> None:
        self.generation = 0
        self._journal, self._root = journal, root
        self._ttl_s = lease_s()
        self._holder = {**describe_holder(), "token": token_hex(8)}
        self._good_until = 0.0
        self._stop = threading.Event()

    def take(self) -> None:
        """Become the holder; BusyError, naming the present one, where its lease has not run out."""
        started = time.monotonic()
        self.generation = self._journal.run(self._take)
        self._good_until = started + self._ttl_s

    def fence(self, connection: sql.Connection) -> None:
        """Renew the lease inside a transaction, which nobody else can then overtake; ResourceError where it is lost."""
        mine = (LEASES.c.id == _ROW) & (LEASES.c.generation == self.generation) & LEASES.c.holder.is_not(None)
        renewed = connection.execute(sql.update(LEASES).where(mine).values(renewed=_NOW))
        if renewed.rowcount != 1:
            raise self._lost(connection)

    def require(self) -> None:
        """ResourceError unless this process holds the workspace now; asks the database only where it may not."""
        if time.monotonic() >= self._good_until:
            self.renew()

    def renew(self) -> None:
        """Hold it for another full lease; ResourceError where it is lost or the database doesn't answer."""
        started = time.monotonic()
        self._journal.run(self.fence)
        self._good_until = started + self._ttl_s

    def keep_alive(self) -> None:
        """Renew until `release`, three times in every lease; whoever writes finds out where that was not possible."""
        while not self._stop.wait(self._ttl_s / 3):
            with suppress(ResourceError):
                self.renew()

    def release(self) -> None:
        """Let go of it. Where the database doesn't answer the lease runs out by itself."""
        self._stop.set()
        mine = (LEASES.c.id == _ROW) & (LEASES.c.generation == self.generation)
        with suppress(ResourceError):
            self._journal.run(lambda connection: connection.execute(sql.update(LEASES).where(mine).values(holder=None)))

    def _take(self, connection: sql.Connection) -> int:
        create_alone(connection)
        connection.execute(CreateTable(LEASES, if_not_exists=True))
        row = _row(connection)
        holder = json.dumps(self._holder)
        if row is not None and row.holder == holder:  # the answer to an earlier try was lost
            return row.generation
        if row is not None and row.holder is not None and row.silent_s < row.ttl_s:
            raise busy(
                self._root,
                row.holder,
                more=f"It was last heard of {row.silent_s:.0f} s ago. If it died, its lease ends in "
                f"{row.ttl_s - row.silent_s:.0f} s ({LEASE_ENV}).",
            )
        values = {"generation": (row.generation if row else 0) + 1, "holder": holder, "ttl_s": self._ttl_s}
        if row is None:
            connection.execute(sql.insert(LEASES).values(id=_ROW, renewed=_NOW, **values))
        else:
            connection.execute(sql.update(LEASES).where(LEASES.c.id == _ROW).values(renewed=_NOW, **values))
        return values["generation"]

    def _lost(self, connection: sql.Connection) -> ResourceError:
        row = _row(connection)
        by = busy(self._root, row.holder if row else None).message
        return ResourceError(
            f"This process lost the workspace: it was silent for longer than its lease of {self._ttl_s:g} s, and "
            f"another took over; nothing more was written. {by}",
            remedy="Run the same command again when the other is done: it resumes.",
        )


@contextmanager
def hold_lease(journal: Journal, *, root: str) -> Iterator[Lease]:
    """Hold a workspace by its ledger's database for the length of the block; see `Lease`.

    While it is held every transaction of `journal` is fenced. A second holder gets a BusyError that names the first.
    """
    lease = Lease(journal, root=root)
    lease.take()
    threading.Thread(target=lease.keep_alive, name="privshard-lease", daemon=True).start()
    journal.fence = lease.fence
    try:
        yield lease
    finally:
        journal.fence = None
        lease.release()


def _row(connection: sql.Connection) -> Any:
    """The lease's row, locked, with how long its holder has been silent; None before the first."""
    query = sql.select(LEASES, (_NOW - LEASES.c.renewed).label("silent_s")).where(LEASES.c.id == _ROW)
    return connection.execute(query.with_for_update()).one_or_none()
