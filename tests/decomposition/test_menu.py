"""Budgets and the frontier, against the definition."""

from __future__ import annotations

import random

from privshard.decomposition.menu import Budget, Size, with_frontier


def size(parameters=1, latency=1.0, memory=1, accuracy: float | None = 0.5) -> Size:
    return Size((1,), 1, parameters, 1, latency, memory, accuracy)


def test_a_budget_holds_what_is_within_every_limit():
    budget = Budget(parameters=10, latency_ms=2.0)
    assert budget.holds(size(10, 2.0, 10**9))
    assert not budget.holds(size(11, 1.0))
    assert not budget.holds(size(1, 2.1))
    assert Budget().holds(size(10**9, 1e9, 10**12))


def test_the_frontier_is_what_no_cheaper_or_equal_one_reaches():
    draw = random.Random(0)
    sizes = [size(draw.randint(1, 9), accuracy=draw.randint(0, 9) / 10) for _ in range(40)]
    found = with_frontier(sizes, budget=Budget(parameters=7), cost="parameters")
    kept = {(one.parameters, one.accuracy) for one in found if one.on_frontier}
    fitting = [one for one in sizes if one.parameters <= 7]
    expected = {
        (one.parameters, one.accuracy)
        for one in fitting
        if not any(
            other.parameters <= one.parameters
            and other.accuracy >= one.accuracy
            and (other.parameters, other.accuracy) != (one.parameters, one.accuracy)
            for other in fitting
        )
    }
    assert kept == expected
    assert len([one for one in found if one.on_frontier]) == len(expected)
    assert [one.fits for one in found] == [one.parameters <= 7 for one in sizes]


def test_without_accuracies_there_is_no_frontier():
    assert not any(one.on_frontier for one in with_frontier([size(accuracy=None)], budget=Budget(), cost="latency_ms"))
