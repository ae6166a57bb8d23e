"""Accounting: the epsilon of composed events, and the noise, the steps or the epsilon that fit the others."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from privshard.core.errors import BudgetError, InputError
from privshard.core.privacy import AccountantName, GaussianEvent
from privshard.privacy.pld import pld_epsilon, require_pld
from privshard.privacy.renyi import renyi_epsilon

MIN_NOISE, MAX_NOISE = 2.0**-7, 2.0**20
RELATIVE_PRECISION = 1e-4
PRV_EPSILON_ERROR = 0.01
_MAX_EPSILON = (
    50.0  # prv and pld: the privacy loss is discretized over a grid as wide as this: beyond it, Renyi's bound serves
)


def epsilon(events: Sequence[GaussianEvent], *, delta: float, accountant: AccountantName = "rdp") -> float:
    """An upper bound on the epsilon that all of `events` together spend at `delta`, add/remove adjacency.

    rdp: Renyi, minimized over all orders; the one that may enforce limits on adaptive choices. prv: numerical
    composition (Gopi et al. 2021) with Opacus' PRVAccountant, tighter by about a tenth, with its discretization error
    of 0.01 added. pld: dp-accounting's privacy loss distributions (`privshard.privacy.pld`), as tight, an extra. Where
    their grids would be too wide, or are worse, Renyi's bound is returned, which holds too.
    Infinite where an event has no noise, 0 without events.

    Checked against Opacus' own accountants in tests/privacy/test_accounting.py, against each other in
    tests/privacy/test_agreement.py.
    """
    return _spend(events, delta, accountant)


def epsilon_for(
    *,
    noise_multiplier: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: AccountantName = "rdp",
    repetitions: int = 1,
    extra: Sequence[GaussianEvent] = (),
) -> float:
    """What `repetitions` trainings of `steps` steps, and the `extra` events once, spend."""
    training = GaussianEvent(noise_multiplier, sample_rate, steps * repetitions)
    return epsilon((training, *extra), delta=delta, accountant=accountant)


def steps_for(
    *,
    noise_multiplier: float,
    epsilon: float,
    delta: float,
    sample_rate: float,
    accountant: AccountantName = "rdp",
    extra: Sequence[GaussianEvent] = (),
) -> int:
    """The largest number of steps that, with the `extra` events, spends at most `epsilon`; BudgetError if none does."""

    def spent(steps: int) -> float:
        return epsilon_for(
            noise_multiplier=noise_multiplier,
            delta=delta,
            sample_rate=sample_rate,
            steps=steps,
            accountant=accountant,
            extra=extra,
        )

    if spent(1) > epsilon:
        raise BudgetError(
            f"A single step with noise multiplier {noise_multiplier} spends epsilon {spent(1):.4g}, "
            f"which is above {epsilon}.",
            remedy="Raise the noise multiplier or epsilon, or lower the sample rate.",
        )
    high = 2
    while spent(high) <= epsilon:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) <= epsilon else (low, middle)
    return low


def calibrate_noise(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: AccountantName = "rdp",
    repetitions: int = 1,
    total_epsilon: float | None = None,
    mean_releases: int = 0,
    extra: Sequence[GaussianEvent] = (),
) -> float:
    """The smallest noise multiplier with which one training and the `extra` events spend at most `epsilon`.

    A training is `steps` steps and `mean_releases` releases of everyone's mean, all with that noise multiplier.

    With `total_epsilon`, `repetitions` trainings and the `extra` events, once, must also spend at most that. Precise
    to 1e-4 of itself and always on the safe side: what is returned was accounted and fits. BudgetError where no noise
    does, because the extra events alone spend too much or because epsilon is too small for the accountant.
    """
    demands = [(1, epsilon)] if total_epsilon is None else [(1, epsilon), (repetitions, total_epsilon)]

    def excess(noise: float, name: AccountantName) -> float:
        """At most 0 where every demand is met; log of the worst spent / allowed."""
        ratios = []
        for times, limit in demands:
            training = GaussianEvent(noise, sample_rate, steps * times)
            means = GaussianEvent(noise, 1.0, mean_releases * times)
            ratios.append(_log_ratio(_spend((training, means, *extra), delta, name), limit))
        return max(ratios)

    wanted = min(limit for _, limit in demands)
    if _spend(extra, delta, accountant) > wanted:
        raise _impossible(wanted, delta, accountant, extra)
    if excess(MAX_NOISE, "rdp") <= 0:
        noise = _smallest(lambda value: excess(value, "rdp"), start=1.0)
    elif accountant != "rdp" and wanted > PRV_EPSILON_ERROR and excess(MAX_NOISE, accountant) <= 0:
        noise = MAX_NOISE
    else:
        raise _impossible(wanted, delta, accountant, extra)
    if accountant != "rdp":
        noise = _smallest(lambda value: excess(value, accountant), start=noise, factor=1.1)
    return noise


def _smallest(excess: Callable[[float], float], *, start: float, factor: float = 2.0) -> float:
    """The smallest noise whose excess is at most 0, to RELATIVE_PRECISION and rounded up, outwards from `start`."""
    high, over_high = start, excess(start)
    while over_high > 0:
        high = min(high * factor, MAX_NOISE)
        over_high = excess(high)
    low, over_low = high / factor, excess(high / factor)
    while over_low <= 0:
        if low <= MIN_NOISE:
            return low
        high, over_high, low = low, over_low, low / factor
        over_low = excess(low)
    turn = 0
    while high > low * (1 + RELATIVE_PRECISION):
        # False position on log scales, where spend is almost a straight line, nudged across the root so that both ends
        # close in; every third turn halves, so that it ends whatever the curve.
        share = over_low / (over_low - over_high) if math.isfinite(over_low - over_high) and turn % 3 < 2 else 0.5
        nudge = RELATIVE_PRECISION / 4 * (1 if turn % 2 == 0 else -1)
        middle = low * (high / low) ** share * (1 + nudge)
        if not low < middle < high:
            middle = math.sqrt(low * high)
        value = excess(middle)
        if value > 0:
            low, over_low = middle, value
        else:
            high, over_high = middle, value
        turn += 1
    return high


def _log_ratio(spent: float, limit: float) -> float:
    """log(spent / limit), above 0 exactly where spent > limit."""
    ratio = math.log(spent / limit) if spent > 0 else -math.inf
    return max(ratio, 5e-324) if spent > limit else min(ratio, 0.0)


def _impossible(wanted: float, delta: float, accountant: AccountantName, extra: Sequence[GaussianEvent]) -> BudgetError:
    alone = epsilon(extra, delta=delta, accountant=accountant)
    if alone > wanted:
        return BudgetError(
            f"epsilon {wanted} at delta {delta} can't be met: other releases, such as the noisy count, already spend "
            f"{alone:.4g}.",
            remedy="Raise epsilon, put more noise on the count, or give the public constant in its place.",
        )
    return BudgetError(
        f"epsilon {wanted} at delta {delta} can't be met: the {accountant} accountant finds no noise multiplier up to "
        f"{MAX_NOISE:g} that does.",
        remedy="Raise epsilon or delta, or lower the sample rate or the number of steps.",
    )


def merged(events: Sequence[GaussianEvent]) -> tuple[GaussianEvent, ...]:
    """Equal mechanisms as one event with their steps added, in an order of their own."""
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        if not (event.noise_multiplier >= 0 and 0 < event.sample_rate <= 1 and event.steps >= 0):
            raise InputError(f"event: expected noise and steps of 0 or more and a rate in (0, 1], got {event}.")
        steps[event.noise_multiplier, event.sample_rate] += event.steps
    return tuple(GaussianEvent(*mechanism, count) for mechanism, count in sorted(steps.items()) if count)


def _spend(events: Sequence[GaussianEvent], delta: float, accountant: AccountantName) -> float:
    """`epsilon`, for functions with an argument of that name."""
    if accountant not in ("rdp", "prv", "pld"):
        raise InputError(f"privacy.accountant: expected rdp, prv or pld, got {accountant!r}.")
    if accountant == "pld":
        require_pld()
    composed = merged(events)
    if not composed:
        return 0.0
    if any(event.noise_multiplier == 0 for event in composed):
        return math.inf
    return _composed(composed, delta, accountant)


@lru_cache(maxsize=4096)
def _composed(events: tuple[GaussianEvent, ...], delta: float, accountant: AccountantName) -> float:
    bound = renyi_epsilon(events, delta=delta)
    if accountant == "rdp" or bound > _MAX_EPSILON:
        return bound
    return min(bound, pld_epsilon(events, delta=delta) if accountant == "pld" else _prv_epsilon(events, delta))


def _prv_epsilon(events: tuple[GaussianEvent, ...], delta: float) -> float:
    import numpy as np
    from opacus.accountants import PRVAccountant

    prv = PRVAccountant()
    prv.history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in events]
    with warnings.catch_warnings(), np.errstate(divide="ignore", over="ignore", invalid="ignore", under="ignore"):
        # Opacus' own Renyi estimate of the grid's width warns about its orders; a wide grid is only slower.
        warnings.simplefilter("ignore")
        try:
            value = float(prv.get_epsilon(delta, eps_error=PRV_EPSILON_ERROR))
        except (RuntimeError, ValueError, OverflowError, MemoryError):
            return math.inf
    return value if math.isfinite(value) else math.inf
