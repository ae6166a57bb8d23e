"""Rows on disk while they are sorted into partitions, so that an ingest holds one partition in memory."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from privshard.core.errors import ResourceError
from privshard.data.shards import ShardRows

_PREFIX = "privshard-ingest-"
EVAL = -1


class Spill:
    """A temporary table of (partition, id, image, label, subject), one row an id and partition.

    Partitions are shards, and `EVAL` for the held-out rows.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE rows (part INTEGER, id TEXT, image BLOB, label TEXT, subject TEXT, UNIQUE (part, id))"
        )
        connection.execute("BEGIN")

    def add(self, partition: int, *, id: str, image: bytes, label: str, subject: str) -> bool:
        """Keep a row; False where the partition already has its id."""
        values = (partition, id, image, label, subject)
        try:
            return self._connection.execute("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?)", values).rowcount == 1
        except sqlite3.OperationalError as error:
            raise ResourceError(
                f"Expected room to sort the rows in, got: {error}.",
                remedy="Free disk space, or point the temporary folder at a larger disk.",
            ) from error

    def drop_trained_copies(self) -> int:
        """Drop the rows of shards that are held out too; returns how many."""
        query = "DELETE FROM rows WHERE part <> ? AND id IN (SELECT id FROM rows WHERE part = ?)"
        return self._connection.execute(query, (EVAL, EVAL)).rowcount

    def partition(self, partition: int) -> ShardRows:
        """The rows of a partition, sorted by id."""
        query = "SELECT id, image, label, subject FROM rows WHERE part = ? ORDER BY id"
        rows = self._connection.execute(query, (partition,)).fetchall()
        ids, images, labels, subjects = zip(*rows, strict=True) if rows else ((), (), (), ())
        return ShardRows(ids=ids, images=images, labels=labels, subjects=subjects)


@contextmanager
def open_spill(folder: Path | None) -> Iterator[Spill]:
    """A spill on a disk, gone with the block however it ends.

    folder: where to put it (only this process may use it: what a killed ingest left there is removed first); None
    for the system's temporary folder. Readable by the owner alone, because it holds personal data.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_PREFIX}*"):
            shutil.rmtree(leftover)
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as home,
        closing(sqlite3.connect(Path(home) / "rows.db", isolation_level=None)) as connection,
    ):
        yield Spill(connection)
