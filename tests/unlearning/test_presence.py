"""Presence: counted where a subject can be, and nowhere else."""

from __future__ import annotations

import pytest

from privshard.core.errors import VerificationError
from privshard.unlearning.presence import Presence, find


def test_rows_are_counted_in_the_subjects_shard_and_among_the_held_out(world):
    for shard in range(3):
        for subject in set(world.rows(shard).subjects):
            held_out = world.rows(None).subjects.count(subject)
            found = find(world.workspace, subject, partition=world.partition)
            assert found == Presence(shard, world.rows(shard).subjects.count(subject), held_out)
            assert found.known
    assert find(world.workspace, "held-1", partition=world.partition).num_train_rows == 0
    assert find(world.workspace, "held-1", partition=world.partition).num_eval_rows == 1


def test_nobody_is_nowhere_but_has_a_shard(world):
    found = find(world.workspace, "nobody", partition=world.partition)
    assert found == Presence(world.partition.shard_of("nobody"), 0, 0)
    assert not found.known


def test_a_missing_partition_is_no_absence(world):
    subject = world.rows(1).subjects[0]
    world.workspace.objects.delete("data/shard=001/part-0.parquet")
    with pytest.raises(VerificationError, match="shard=001"):
        find(world.workspace, subject, partition=world.partition)
