"""Plans: one shard's mechanism from a person's choices, and what a history of such plans has spent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from privshard.core.errors import InputError
from privshard.core.privacy import GaussianEvent, MechanismPlan, PrivacyParams, PrivacySpend
from privshard.privacy.accounting import calibrate_noise, epsilon
from privshard.privacy.stream import ChaChaStream

_Kind = TypeVar("_Kind", MechanismPlan, PrivacySpend)


def make_plan(
    params: PrivacyParams,
    *,
    sample_rate: float,
    steps: int,
    nominal_units_per_shard: float,
    mean_releases: int = 0,
    count_noise_multiplier: float | None = None,
) -> MechanismPlan:
    """The mechanism of one shard's training: the least noise that keeps `params`, everything else as given.

    One training and the noisy count, where one was taken, spend at most params.epsilon; with params.epsilon_limit or
    params.workspace_limit, 1 + planned_retrains trainings and the count also spend at most the smaller of them.
    params.epsilon None: no noise, no privacy.

    nominal_units_per_shard: a public constant, or a noisy count whose noise is `count_noise_multiplier`; the
    normaliser is sample_rate times it. BudgetError where no noise suffices. Warns where delta is not below
    1 / nominal_units_per_shard, since delta then allows to publish a unit outright.
    """
    if not (nominal_units_per_shard > 0 and math.isfinite(nominal_units_per_shard)):
        raise InputError(
            f"units a shard: expected a positive public constant, got {nominal_units_per_shard}.",
            remedy="Set data.nominal_examples, or lower the number of shards.",
        )
    extra = () if count_noise_multiplier is None else (GaussianEvent(count_noise_multiplier, 1.0, 1),)
    noise_multiplier = 0.0
    limits = [limit for limit in (params.epsilon_limit, params.workspace_limit) if limit is not None]
    if params.epsilon is not None:
        noise_multiplier = calibrate_noise(
            epsilon=params.epsilon,
            delta=params.delta,
            sample_rate=sample_rate,
            steps=steps,
            accountant=params.accountant,
            repetitions=1 + params.planned_retrains,
            total_epsilon=min(limits) if limits else None,
            mean_releases=mean_releases,
            extra=extra,
        )
        if params.delta * nominal_units_per_shard >= 1:
            warnings.warn(
                f"privacy.delta {params.delta} is not below one over the {nominal_units_per_shard:g} {params.unit}s "
                "of a shard: such a delta allows to publish one of them outright. Choose a smaller one.",
                UserWarning,
                stacklevel=2,
            )
    return MechanismPlan(
        unit=params.unit,
        sample_rate=sample_rate,
        steps=steps,
        max_grad_norm=params.max_grad_norm,
        noise_multiplier=noise_multiplier,
        expected_units=sample_rate * nominal_units_per_shard,
        delta=params.delta,
        accountant=params.accountant,
        mean_releases=mean_releases,
        count_noise_multiplier=count_noise_multiplier,
        hardening=params.hardening,
    )


def history_events(plans: Sequence[MechanismPlan]) -> tuple[GaussianEvent, ...]:
    """All that the trainings of one shard released about a unit, each noisy count once."""
    counts = dict.fromkeys(event for plan in plans for event in plan.count_events)
    return (*(event for plan in plans for event in plan.events), *counts)


def spend_of(plans: Sequence[MechanismPlan]) -> PrivacySpend:
    """What all trainings of one shard, first and repeated, spend together: sequential composition.

    A history that was fixed in advance, or whose only choice was how often to repeat one plan, spends this much.
    Whoever chooses other plans by looking at earlier releases relies on the limit (`privshard.privacy.budget`).
    """
    first = same_kind(plans, "plans of one shard")
    spent = epsilon(history_events(plans), delta=first.delta, accountant=first.accountant)
    return PrivacySpend(spent if math.isfinite(spent) else None, first.delta, first.unit, first.accountant)


def composition_spend(shard_spends: Mapping[int, PrivacySpend], *, partition: Literal["keyed_hash"]) -> PrivacySpend:
    """What the release of every shard's components spends: (max epsilon, max delta), parallel composition.

    It needs that adding or removing one unit changes one shard only, which holds where the shard of a unit depends on
    that unit alone: `partition` has to be "keyed_hash" (`privshard.core.partition`). All shards must protect the same
    unit under the same adjacency, at one delta, by one accountant. A shard without differential privacy leaves the
    whole without it (epsilon None).

    shard_spends: shard -> everything that was ever learnt from it, dropped components included.
    """
    if partition != "keyed_hash":
        raise InputError(
            f"partition: expected keyed_hash, got {partition!r}.",
            remedy="Other splits depend on several units, so the budgets of their shards add up.",
        )
    first = same_kind(list(shard_spends.values()), "shards of one composition")
    spent = [spend.epsilon for spend in shard_spends.values()]
    known = [value for value in spent if value is not None]
    worst = max(known) if len(known) == len(spent) else None
    return PrivacySpend(worst, first.delta, first.unit, first.accountant, first.adjacency)


def noisy_count(true_count: int, *, noise_multiplier: float, stream: ChaChaStream) -> float:
    """The number of units plus Gaussian noise: max(1, round(n + N(0, z^2))), sensitivity 1.

    It spends GaussianEvent(z, 1.0, 1) once, however many shards and trainings use it.
    """
    if not noise_multiplier > 0:
        raise InputError(f"count noise multiplier: expected a positive number, got {noise_multiplier}.")
    return float(max(1, round(true_count + noise_multiplier * stream.normal(1).item())))


def same_kind(items: Sequence[_Kind], what: str) -> _Kind:
    """The first of `items`, which must agree on unit, adjacency, delta and accountant."""
    kinds = {(item.unit, item.adjacency, item.delta, item.accountant) for item in items}
    if len(kinds) != 1:
        raise InputError(
            f"{what}: expected one unit, adjacency, delta and accountant, got {sorted(kinds) or 'none at all'}.",
            remedy="Guarantees of different kinds can't be compared; report them one by one.",
        )
    return items[0]
