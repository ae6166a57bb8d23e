"""Which examples make up a unit of privacy, and how units are cut into batches that fit memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Units:
    """The units of a shard in the order of their ids. members[u]: the rows of unit u, ascending."""

    ids: tuple[str, ...]
    members: tuple[np.ndarray, ...]

    @staticmethod
    def of(unit_of_row: Sequence[str]) -> Units:
        """Group rows by unit; unit_of_row[i] is the unit of row i (its example id, or its subject)."""
        rows: dict[str, list[int]] = {}
        for row, unit in enumerate(unit_of_row):
            rows.setdefault(unit, []).append(row)
        ids = tuple(sorted(rows))
        return Units(ids, tuple(np.array(rows[unit]) for unit in ids))

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, taken: np.ndarray, *, max_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Cut the `taken` units into batches (rows, unit of each row from 0 within the batch).

        Units stay whole: a batch holds at most `max_rows` rows, or one unit that has more.
        """
        batch: list[np.ndarray] = []
        size = 0
        for unit in taken:
            rows = self.members[unit]
            if batch and size + len(rows) > max_rows:
                yield _joined(batch)
                batch, size = [], 0
            batch.append(rows)
            size += len(rows)
        if batch:
            yield _joined(batch)


def _joined(batch: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(batch), np.repeat(np.arange(len(batch)), [len(rows) for rows in batch])
