"""A new key or number of shards composes sequentially with what came before."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from privshard.core.errors import InputError
from privshard.core.privacy import MechanismPlan
from privshard.privacy.lineage import PartitionEpoch, lineage_spend, lineage_statement
from privshard.privacy.plan import composition_spend, spend_of

PLAN = MechanismPlan("example", 0.1, 50, 1.0, 2.0, 10.0, 1e-5, "rdp", count_noise_multiplier=20.0)
GENTLE = replace(PLAN, noise_multiplier=5.0)
FIRST = PartitionEpoch("a", 2, {0: [PLAN, PLAN], 1: [PLAN]})
SECOND = PartitionEpoch("b", 3, {0: [GENTLE], 1: [PLAN], 2: [GENTLE, GENTLE]})


def test_one_partition_is_parallel_composition():
    parallel = composition_spend({s: spend_of(held) for s, held in FIRST.histories.items()}, partition="keyed_hash")
    assert lineage_spend([FIRST]) == parallel


def test_the_worst_choice_of_one_shard_an_epoch_counts():
    plain = [
        PartitionEpoch(e.key_fingerprint, e.num_shards, {s: [replace(p, count_noise_multiplier=None) for p in held]
                                                         for s, held in e.histories.items()})
        for e in (FIRST, SECOND)
    ]  # fmt: skip
    slow = max(
        spend_of([*one, *other]).epsilon or 0
        for one, other in itertools.product(plain[0].histories.values(), plain[1].histories.values())
    )
    assert lineage_spend(plain).epsilon == pytest.approx(slow, rel=1e-12)
    assert lineage_spend(plain[::-1]).epsilon == pytest.approx(slow, rel=1e-12)
    assert slow > max(lineage_spend([epoch]).epsilon or 0 for epoch in plain)


def test_every_partition_took_its_own_count():
    without = [replace(PLAN, count_noise_multiplier=None)]
    epochs = [PartitionEpoch(name, 1, {0: [PLAN]}) for name in "ab"]
    counted_once = spend_of([PLAN, PLAN]).epsilon
    assert (lineage_spend(epochs).epsilon or 0) > (counted_once or 0)
    assert lineage_spend([PartitionEpoch("a", 1, {0: without}), PartitionEpoch("b", 1, {})]) == spend_of(without)


def test_one_training_without_noise_voids_the_lineage():
    public = PartitionEpoch("c", 1, {0: [replace(PLAN, noise_multiplier=0.0)]})
    spend = lineage_spend([FIRST, public])
    assert spend.epsilon is None
    assert lineage_statement([FIRST, public], spend).startswith("There is no differential privacy")


def test_the_statement_says_what_composes_and_what_is_assumed():
    spend = lineage_spend([FIRST, SECOND])
    text = lineage_statement([FIRST, SECOND], spend)
    shown = float(text.split("at most epsilon ")[1].split()[0])
    assert spend.epsilon is not None
    assert spend.epsilon <= shown < spend.epsilon + 2e-4
    for part in (
        "2 shard(s), then 3 shard(s)",
        "partition to partition the spends compose",
        "independently of the data",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ([replace(FIRST, kind="balanced")], "expected keyed_hash, got 'balanced'"),
        ([FIRST, replace(SECOND, key_fingerprint="a", num_shards=2, histories={0: [PLAN]})], "twice"),
        ([PartitionEpoch("a", 2, {2: [PLAN]})], r"expected 0 to 1, got \[2\]"),
        ([FIRST, PartitionEpoch("b", 1, {0: [replace(PLAN, delta=1e-6)]})], "one unit, adjacency"),
        ([FIRST, PartitionEpoch("b", 1, {0: [replace(PLAN, unit="subject")]})], "one unit, adjacency"),
        ([PartitionEpoch("a", 1, {})], "no training"),
        ([], "no training"),
    ],
)
def test_conditions_are_checked(epochs, message):
    with pytest.raises(InputError, match=message):
        lineage_spend(epochs)
