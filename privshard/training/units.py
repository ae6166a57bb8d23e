"""Which examples make up a unit of privacy, and how units are cut into batches that fit memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Units:
    """The units of a shard in the order of their ids. sizes[u]: how many rows unit u has; rows: those of unit 0,
    ascending, then those of unit 1, and so on."""

    ids: tuple[str, ...]
    sizes: np.ndarray
    rows: np.ndarray

    @staticmethod
    def of(unit_of_row: Sequence[str]) -> Units:
        """Group rows by unit; unit_of_row[i] is the unit of row i (its example id, or its subject)."""
        ids = tuple(sorted(set(unit_of_row)))
        number = {unit: position for position, unit in enumerate(ids)}
        unit_of = np.array([number[unit] for unit in unit_of_row], dtype=np.int64)
        return Units(ids, np.bincount(unit_of, minlength=len(ids)), np.argsort(unit_of, kind="stable"))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.sizes)

    @property
    def members(self) -> tuple[np.ndarray, ...]:
        """The rows of each unit, ascending."""
        return tuple(np.split(self.rows, self._ends[:-1])) if len(self) else ()

    def batches(self, taken: np.ndarray, *, max_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Cut the `taken` units into batches (rows, unit of each row from 0 within the batch, ascending).

        Units stay whole: a batch holds at most `max_rows` rows, or one unit that has more.
        """
        ends = np.cumsum(self.sizes[taken])
        first, done = 0, 0
        while first < len(taken):
            last = max(first + 1, int(np.searchsorted(ends, done + max_rows, side="right")))
            yield self._gathered(taken[first:last])
            first, done = last, int(ends[last - 1])

    def _gathered(self, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = self.sizes[taken]
        unit_of_row = np.repeat(np.arange(len(taken)), sizes)
        place = np.arange(len(unit_of_row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.rows[(self._ends - self.sizes)[taken][unit_of_row] + place], unit_of_row
