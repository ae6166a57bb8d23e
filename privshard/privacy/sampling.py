"""Poisson sampling: which units take part in which step, each by its own random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from privshard.core.errors import InputError
from privshard.privacy.stream import BLOCK_BYTES, derive_key, key_stream

_WORDS_PER_BLOCK = BLOCK_BYTES // 8


class PoissonSampler:
    """Includes every unit in every step independently with probability `sample_rate`.

    Unit u takes part in step t when number t of its own ChaCha20 stream, keyed by (key, u), is below
    floor(sample_rate * 2^64); the rate that is realized is never above the one that is accounted, and below it by at
    most 2^-64. A rate of 1 includes everyone.

    Guaranteed: the draws of a unit depend on the key and that unit's id alone, so adding or removing another changes
    nothing for it. Steps may be empty; they are steps. No other kind of sampling is offered, because the accountants
    assume this one.

    key: 32 secret bytes, e.g. derive_key(root, "sampling"). sample_rate in (0, 1]. steps: at least 1.
    """

    def __init__(self, key: bytes, *, sample_rate: float, steps: int) -> None:
        if not 0 < sample_rate <= 1:
            raise InputError(f"training.sample_rate: expected a number in (0, 1], got {sample_rate}.")
        if steps < 1:
            raise InputError(f"training.steps: expected at least 1, got {steps}.")
        self._key = derive_key(key, "units")
        self._threshold = int(sample_rate * 2**64)
        self.sample_rate = sample_rate
        self.steps = steps

    def included(self, unit_ids: Sequence[str], *, first_step: int = 0, num_steps: int | None = None) -> np.ndarray:
        """Who takes part: bool, (num_units, num_steps), for the steps from `first_step` on (None: up to the last).

        A window of steps holds the same values as those columns of the whole, at num_units * num_steps bytes.
        """
        last = self.steps if num_steps is None else first_step + num_steps
        if not 0 <= first_step <= last <= self.steps:
            raise InputError(f"steps: expected a window of 0 to {self.steps}, got {first_step} to {last}.")
        _require_distinct(unit_ids)
        out = np.ones((len(unit_ids), last - first_step), dtype=bool)
        if self._threshold >= 2**64:
            return out
        block, skip = divmod(first_step, _WORDS_PER_BLOCK)
        num_bytes, limit = 8 * (skip + last - first_step), np.uint64(self._threshold)
        for row, unit in zip(out, unit_ids, strict=True):
            raw = key_stream(derive_key(self._key, unit), block=block, num_bytes=num_bytes)
            np.less(np.frombuffer(raw, dtype="<u8")[skip:], limit, out=row)
        return out

    def batches(self, unit_ids: Sequence[str], *, window: int = 256) -> Iterator[np.ndarray]:
        """For each step in turn, the sorted positions in `unit_ids` of who takes part; `window` steps are held."""
        for first in range(0, self.steps, window):
            size = min(window, self.steps - first)
            for column in self.included(unit_ids, first_step=first, num_steps=size).T:
                yield np.flatnonzero(column)


def _require_distinct(unit_ids: Sequence[str]) -> None:
    if len(set(unit_ids)) != len(unit_ids):
        raise InputError(
            f"unit ids: expected distinct ones, got {len(set(unit_ids))} different among {len(unit_ids)}.",
            remedy="Group the examples of one unit before sampling: a unit is in a step as a whole or not at all.",
        )
