"""Ordered work on threads."""

from __future__ import annotations

import threading
import time

import pytest

from privshard.data.prefetch import in_chunks, ordered_map


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_order_is_that_of_the_items(num_workers):
    def slow_first(item: int) -> int:
        time.sleep(0.01 if item % 4 == 0 else 0)
        return item * item

    assert list(ordered_map(slow_first, range(20), num_workers=num_workers)) == [i * i for i in range(20)]


def test_only_a_few_results_wait():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = ordered_map(lambda item: item, items(), num_workers=2)
    assert next(results) == 0
    assert len(taken) <= 4
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("privshard-data")]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_an_error_comes_where_its_result_would(num_workers):
    def fail_at_five(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        return item

    seen = []
    with pytest.raises(ValueError, match="five"):
        seen.extend(ordered_map(fail_at_five, range(50), num_workers=num_workers))
    assert seen == [0, 1, 2, 3, 4]


def test_chunks():
    assert list(in_chunks(range(4), size=2)) == [[0, 1], [2, 3]]
    assert list(in_chunks([], size=2)) == []
