"""Lineages: what the same data spend over changes of partition, where new shards follow old ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from privshard.core.errors import InputError
from privshard.core.privacy import ADJACENCY, MechanismPlan, PrivacySpend
from privshard.privacy.accounting import epsilon
from privshard.privacy.plan import history_events


@dataclass(frozen=True)
class PartitionEpoch:
    """Everything that was ever learnt under one partition.

    key_fingerprint: what tells this partition's key from others (`privshard.store.secrets.Secrets.fingerprint`).
    histories: shard -> the plans that count as spent on it, dropped components and failed attempts included; shards
    that were never trained may be left out. kind: only "keyed_hash" composes in parallel.
    """

    key_fingerprint: str
    num_shards: int
    histories: Mapping[int, Sequence[MechanismPlan]]
    kind: str = "keyed_hash"


def lineage_spend(epochs: Sequence[PartitionEpoch]) -> PrivacySpend:
    """What the releases of all epochs together spend for one unit: parallel within an epoch, sequential between them.

    A unit is in one shard of each partition, so all that was learnt of it is the histories of one shard an epoch; which
    ones is secret, so the worst choice counts:

        max over (s_1, ..., s_n) of epsilon(events of s_1 in epoch 1, ..., of s_n in epoch n)

    Guaranteed if every key was drawn independently of the data, and if the plans were fixed in advance; a workspace
    whose plans were chosen by looking at earlier releases counts with its limit instead. Conditions that are checked
    (InputError): keyed hashes only, one unit, adjacency, delta and accountant in all epochs, shards within their
    partition, and no partition twice, because its histories would belong together. A noisy count is charged once an
    epoch. epsilon is None where anything was learnt without differential privacy.
    """
    plans = _checked(epochs)
    first = plans[0]
    spend = PrivacySpend(None, first.delta, first.unit, first.accountant, first.adjacency)
    if not all(plan.private for plan in plans):
        return spend
    combinations = {()}
    for epoch in epochs:
        events = {tuple(sorted(history_events(held), key=repr)) for held in epoch.histories.values() if held}
        combinations = {(*before, *more) for before in combinations for more in events or {()}}
    worst = max(epsilon(choice, delta=first.delta, accountant=first.accountant) for choice in combinations)
    return PrivacySpend(
        worst if math.isfinite(worst) else None, first.delta, first.unit, first.accountant, first.adjacency
    )


def lineage_statement(epochs: Sequence[PartitionEpoch], spend: PrivacySpend) -> str:
    """The guarantee over all partitions, in plain English."""
    shape = ", then ".join(f"{epoch.num_shards} shard(s)" for epoch in epochs)
    if spend.epsilon is None:
        return (
            f"There is no differential privacy over these {len(epochs)} partition(s) ({shape}): something was learnt "
            "without noise."
        )
    return (
        f"Over {len(epochs)} partition(s) of the same data ({shape}), everything that was ever learnt spends at most "
        f"epsilon {spend.epsilon + 5e-5:.4f} and delta {spend.delta:g} for one {spend.unit} (adjacency: adding or "
        f"removing one {spend.unit}), an upper bound by the {spend.accountant} accountant. Within a partition a "
        f"{spend.unit} is in one shard, and the worst counts; from partition to partition the spends compose. Assumed: "
        "each partition key was drawn independently of the data and stays secret. Not covered: that somebody chose "
        "when to partition anew, or how, by looking at private rows."
    )


def _checked(epochs: Sequence[PartitionEpoch]) -> list[MechanismPlan]:
    """All plans of all epochs, which must be comparable."""
    for epoch in epochs:
        if epoch.kind != "keyed_hash":
            raise InputError(
                f"partition: expected keyed_hash, got {epoch.kind!r}.",
                remedy="Other splits depend on several units, so the budgets of their shards add up.",
            )
        outside = sorted(set(epoch.histories) - set(range(epoch.num_shards)))
        if outside:
            raise InputError(f"shards: expected 0 to {epoch.num_shards - 1}, got {outside}.")
    names = [(epoch.key_fingerprint, epoch.num_shards) for epoch in epochs]
    if len(set(names)) != len(names):
        raise InputError(
            "epochs: expected every partition once, got the same key and number of shards twice.",
            remedy="Join the histories of its shards: what was learnt from one shard composes there.",
        )
    plans = [plan for epoch in epochs for held in epoch.histories.values() for plan in held]
    kinds = {(plan.unit, plan.adjacency, plan.delta, plan.accountant) for plan in plans}
    if len(kinds) != 1:
        raise InputError(
            f"epochs: expected one unit, adjacency ({ADJACENCY}), delta and accountant, got "
            f"{sorted(kinds) or 'no training at all'}.",
            remedy="Guarantees of different kinds can't be composed; report them one by one.",
        )
    return plans
