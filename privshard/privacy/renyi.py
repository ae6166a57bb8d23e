"""Renyi accounting: the curve of composed Poisson-subsampled Gaussians by Opacus, minimized over all orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from privshard.core.errors import InputError
from privshard.core.privacy import GaussianEvent

# Orders are searched along this ladder, which goes on by doubling or halving (alpha - 1) where the best is at an end.
_LADDER = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 512.0)
_START = _LADDER.index(8.0)
_MAX_FRACTIONAL = 12.0
_MIN_ORDER, _MAX_ORDER = 1.0 + 2.0**-12, 2.0**60


def renyi_epsilon(events: Sequence[GaussianEvent], *, delta: float) -> float:
    """The epsilon of `events` at `delta`: the smallest over the order alpha of

        sum_e steps_e R_e(alpha) + log((alpha - 1) / alpha) - (log delta + log alpha) / (alpha - 1)

    (Balle et al. 2020, theorem 21), where R_e is Opacus' `compute_rdp`. Every order gives a valid bound, so the search
    can only be less than tight, never wrong.
    """
    return renyi_epsilon_at(events, delta=delta, order=best_order(events, delta=delta))


def renyi_epsilon_at(events: Sequence[GaussianEvent], *, delta: float, order: float) -> float:
    """The epsilon of `events` at `delta` by one `order` > 1; holds for adaptive events if it is fixed first."""
    if not 0 < delta < 1:
        raise InputError(f"delta: expected a number in (0, 1), got {delta}.")
    conversion = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return max(0.0, sum(_divergence(event, order) for event in events) + conversion)


def best_order(events: Sequence[GaussianEvent], *, delta: float) -> float:
    """The order that gives the smallest epsilon, by descent on a ladder, then a search between its rungs."""

    @cache
    def objective(order: float) -> float:
        return renyi_epsilon_at(events, delta=delta, order=order)

    below, best, above = _descend(objective)
    orders = _golden_section(objective, below, above) if above <= _MAX_FRACTIONAL else _integers(below, above)
    return min((best, *orders), key=objective)


def _divergence(event: GaussianEvent, order: float) -> float:
    if event.noise_multiplier == 0:
        return math.inf
    return event.steps * _step_divergence(event.noise_multiplier, event.sample_rate, order)


@lru_cache(maxsize=1 << 14)
def _step_divergence(noise_multiplier: float, sample_rate: float, order: float) -> float:
    """R(alpha) of one step; infinite where Opacus' series can't be trusted.

    Integer orders are finite sums. The series for fractional orders stops at its first small term, which for large
    orders can come before the large ones (rate 0.5, noise 20, order 90.5 gives -0.6): only small ones are used, and
    only between the values at their integer neighbours, because R grows with the order.
    """
    import numpy as np
    from opacus.accountants.analysis.rdp import compute_rdp

    def evaluate(alpha: float) -> float:
        try:
            (value,) = np.ravel(compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=alpha))
        except (ValueError, OverflowError):
            return math.inf
        return math.inf if math.isnan(value) else float(value)

    if sample_rate == 1 or order.is_integer():
        return evaluate(order)
    lower = _step_divergence(noise_multiplier, sample_rate, float(math.floor(order))) if order > 2 else 0.0
    upper = _step_divergence(noise_multiplier, sample_rate, float(math.ceil(order)))
    value = evaluate(order) if order < _MAX_FRACTIONAL else math.inf
    return value if lower <= value <= upper else upper


def _descend(objective: Callable[[float], float]) -> tuple[float, float, float]:
    """Walk along the ladder to a rung that is no worse than both neighbours; returned with them."""
    rungs, at = list(_LADDER), _START
    while True:
        if at == 0:
            rungs.insert(0, 1 + (rungs[0] - 1) / 2)
            at = 1
        if at == len(rungs) - 1:
            rungs.append(2 * rungs[-1])
        below, here, above = rungs[at - 1], rungs[at], rungs[at + 1]
        if objective(below) < objective(here) and below > _MIN_ORDER:
            at -= 1
        elif objective(above) < objective(here) and above < _MAX_ORDER:
            at += 1
        else:
            return below, here, above


def _golden_section(objective: Callable[[float], float], below: float, above: float) -> list[float]:
    """Orders around the minimum between `below` and `above`, on the scale of log(alpha - 1)."""
    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(below - 1), math.log(above - 1)
    tried = []
    for _ in range(14):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        pair = (1 + math.exp(left), 1 + math.exp(right))
        tried += pair
        if objective(pair[0]) <= objective(pair[1]):
            high = right
        else:
            low = left
    return tried


def _integers(below: float, above: float) -> list[float]:
    """At most 33 evenly spaced whole orders from `below` to `above`."""
    first, last = math.ceil(below), math.floor(above)
    stride = max(1, (last - first) // 32)
    return [float(order) for order in range(first, last + 1, stride)]
