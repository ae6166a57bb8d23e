"""Group privacy: what several units together, such as all examples of one subject, are promised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from privshard.core.errors import InputError
from privshard.core.privacy import GaussianEvent, MechanismPlan, PrivacySpend
from privshard.privacy.accounting import merged
from privshard.privacy.plan import history_events, same_kind, spend_of
from privshard.privacy.pld import binomial, pld_epsilon

ORDERS = (
    1.05,
    1.1,
    1.2,
    1.35,
    1.5,
    1.75,
    *(order / 4 for order in range(8, 24)),
    *range(6, 17),
    *range(18, 33, 2),
    *range(36, 65, 4),
    80,
    96,
    128,
    192,
    256,
)
_NODES_PER_STD = 16
_TAIL_STDS = 9.0


def group_spend(
    plans: Sequence[MechanismPlan], *, group_size: int, accountant: Literal["rdp", "pld"] = "rdp"
) -> PrivacySpend:
    """What the trainings of one shard spend together for `group_size` units that are added or removed at once.

    With unit example it is the guarantee of a subject with that many examples, which the partition keeps in one shard.
    Theorem (Ganesh 2024, arXiv 2401.10294): in a step every member takes part independently at the sample rate and
    moves the sum by at most the clipping norm, so the step is dominated by the mixture of Gaussians

        sum_j Binomial(k, q)(j) N(j, z^2)   against   N(0, z^2)

    in either direction, and adaptive steps compose by it. rdp composes that pair's Renyi divergence and converts it at
    the best order; pld is dp-accounting's composition of the same pair, tight up to its rounding and minutes long. A
    group of one gives `spend_of`. Compared with the closed form at whole orders, with the generic bound and with the
    PLD in tests/privacy/test_group.py.

    group_size: at least 1; how many examples a subject has is private, so ask for public sizes. InputError for less.
    """
    if group_size < 1:
        raise InputError(f"group size: expected 1 or more, got {group_size}.")
    if group_size == 1:
        return spend_of(plans)
    first = same_kind(plans, "plans of one shard")
    events = merged(history_events(plans))
    composed = pld_epsilon if accountant == "pld" else group_epsilon
    epsilon = composed(events, delta=first.delta, group_size=group_size)
    known = epsilon if math.isfinite(epsilon) else None
    return PrivacySpend(known, first.delta, first.unit, accountant, first.adjacency)


def group_epsilon(events: Sequence[GaussianEvent], *, delta: float, group_size: int) -> float:
    """Epsilon for the group by Renyi composition, the smallest over ORDERS: every one gives a valid bound."""

    def at(order: float) -> float:
        conversion = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        spent = sum(event.steps * group_divergence(event, order=order, group_size=group_size) for event in events)
        return max(0.0, spent + conversion)

    return min(at(float(order)) for order in ORDERS)


@lru_cache(maxsize=1 << 14)
def group_divergence(event: GaussianEvent, *, order: float, group_size: int) -> float:
    """The larger Renyi divergence, of the two directions, between the mixture and N(0, z^2): one step of `event`.

    Without sampling it is order k^2 / (2 z^2). Else log of the integral of P^a Q^(1-a), by the trapezoidal rule on
    z / 16: integrand and its derivatives vanish at both ends, so its error falls faster than any power of the spacing.
    """
    z = event.noise_multiplier
    if z == 0:
        return math.inf
    if event.sample_rate == 1:
        return order * group_size**2 / (2 * z**2)
    share_J = np.array(binomial(group_size, event.sample_rate))
    # P^a Q^(1-a) peaks within [(1-a) k, a k]
    low, high = (1 - order) * group_size - _TAIL_STDS * z, order * group_size + _TAIL_STDS * z
    x = np.linspace(low, high, int((high - low) / z * _NODES_PER_STD) + 2)
    shift_J = np.arange(group_size + 1)[:, None]
    with np.errstate(divide="ignore"):
        log_share = np.log(share_J)[:, None]
    log_ratio = _log_sum(log_share + (2 * shift_J * x - shift_J**2) / (2 * z**2), axis=0)  # log of mixture / N(0, z^2)
    log_null = -(x**2) / (2 * z**2) - 0.5 * math.log(2 * math.pi * z**2)
    spacing = math.log(x[1] - x[0])
    forwards = float(_log_sum(log_null + order * log_ratio, axis=0)) + spacing
    backwards = float(_log_sum(log_null + (1 - order) * log_ratio, axis=0)) + spacing
    return max(0.0, forwards, backwards) / (order - 1)


def _log_sum(log_terms: np.ndarray, *, axis: int) -> np.ndarray:
    """log of the sum of exp, without overflow."""
    top = log_terms.max(axis=axis)
    return top + np.log(np.exp(log_terms - np.expand_dims(top, axis)).sum(axis=axis))
