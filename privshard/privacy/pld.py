"""Accounting by privacy loss distributions: dp-accounting's numerical composition, for one unit or a group of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from privshard.core.errors import InputError, ResourceError
from privshard.core.privacy import GaussianEvent

ROUNDING = 1e-4


@lru_cache(maxsize=1024)
def pld_epsilon(
    events: tuple[GaussianEvent, ...], *, delta: float, group_size: int = 1, rounding: float = ROUNDING
) -> float:
    """An upper bound on the epsilon of `events` at `delta` for adding or removing `group_size` units.

    One unit: the Poisson-subsampled Gaussian mechanism of dp-accounting's `PLDAccountant`. A group of k: how many of
    its members take part in a step is Binomial(k, rate), each moves the sum by at most the clipping norm, so that the
    step is dominated by the mixture sum_j P(j) N(j, z^2) against N(0, z^2), adaptively chosen steps included (Ganesh
    2024, arXiv 2401.10294, theorem 4.4); dp-accounting composes exactly that mixture. Rounding of the loss to
    multiples of `rounding` is pessimistic, so the value is a bound. Infinite where an event has no noise.

    ResourceError where dp-accounting isn't installed.
    """
    if group_size < 1:
        raise InputError(f"group size: expected 1 or more, got {group_size}.")
    if any(event.noise_multiplier == 0 and event.steps for event in events):
        return math.inf
    dp_event, pld = _library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accountant = pld.PLDAccountant(value_discretization_interval=rounding)
        for event in events:
            if event.steps:
                accountant.compose(_one_step(dp_event, event, group_size), event.steps)
        return float(accountant.get_epsilon(delta))


def require_pld() -> None:
    """ResourceError, with the remedy, unless dp-accounting is installed: asked before any work starts."""
    _library()


def binomial(group_size: int, rate: float) -> list[float]:
    """P(j of `group_size` members take part), j = 0 to group_size.

    >>> binomial(2, 0.5)
    [0.25, 0.5, 0.25]
    """
    return [
        math.comb(group_size, taken) * rate**taken * (1 - rate) ** (group_size - taken)
        for taken in range(group_size + 1)
    ]


def _one_step(dp_event: Any, event: GaussianEvent, group_size: int) -> Any:
    if event.sample_rate == 1:
        return dp_event.GaussianDpEvent(event.noise_multiplier / group_size)
    if group_size == 1:
        return dp_event.PoissonSampledDpEvent(event.sample_rate, dp_event.GaussianDpEvent(event.noise_multiplier))
    shares: Sequence[float] = binomial(group_size, event.sample_rate)
    return dp_event.MixtureOfGaussiansDpEvent(event.noise_multiplier, [float(j) for j in range(len(shares))], shares)


def _library() -> tuple[Any, Any]:
    try:
        from dp_accounting import dp_event, pld
    except ImportError as error:
        raise ResourceError(
            f"Expected dp-accounting for the accountant pld, but: {error}.",
            remedy="Install it: pip install 'privshard[pld]', or set privacy.accountant to rdp.",
        ) from error
    return dp_event, pld
