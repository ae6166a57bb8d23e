"""Units: complete, in the order of their ids, and cut into batches without being cut themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privshard.training.units import Units

ROWS = st.lists(st.sampled_from("abcdefg"), max_size=30)


@given(ROWS)
def test_every_row_is_in_its_unit_and_in_no_other(unit_of_row):
    units = Units.of(unit_of_row)
    assert list(units.ids) == sorted(set(unit_of_row))
    assert len(units) == len(units.ids) == len(units.members)
    for name, rows in zip(units.ids, units.members, strict=True):
        assert rows.tolist() == [row for row, unit in enumerate(unit_of_row) if unit == name]


@given(ROWS, st.integers(1, 12), st.sets(st.integers(0, 6)))
def test_batches_hold_the_taken_units_whole(unit_of_row, max_rows, chosen):
    units = Units.of(unit_of_row)
    taken = np.array([unit for unit in sorted(chosen) if unit < len(units)], dtype=int)
    batches = list(units.batches(taken, max_rows=max_rows))
    seen = []
    for rows, unit_of_batch_row in batches:
        assert len(rows) == len(unit_of_batch_row) > 0
        num_units = int(unit_of_batch_row[-1]) + 1
        assert sorted(set(unit_of_batch_row.tolist())) == list(range(num_units))
        assert len(rows) <= max_rows or num_units == 1
        for unit in range(num_units):
            seen.append([int(row) for row, owner in zip(rows, unit_of_batch_row, strict=True) if owner == unit])
    assert seen == [units.members[unit].tolist() for unit in taken]


def test_batches_are_filled_up():
    units = Units.of("aabbbcd")
    batches = [(rows.tolist(), owner.tolist()) for rows, owner in units.batches(np.arange(4), max_rows=5)]
    assert batches == [([0, 1, 2, 3, 4], [0, 0, 1, 1, 1]), ([5, 6], [0, 1])]


def test_a_unit_that_is_larger_than_a_batch_stays_whole():
    units = Units.of("abbbbc")
    sizes = [len(rows) for rows, _ in units.batches(np.arange(3), max_rows=2)]
    assert sizes == [1, 4, 1]


@pytest.mark.parametrize("unit_of_row", ["", "ab"])
def test_nobody_taken_gives_no_batch(unit_of_row):
    units = Units.of(unit_of_row)
    assert list(units.batches(np.zeros(0, dtype=int), max_rows=4)) == []
