"""Erasure in the caches of shards: nothing of the subject is left in any file, and the others' rows stay."""

from __future__ import annotations

import pytest

from privshard.store import rows
from privshard.store.rows import open_rows
from privshard.unlearning import shard_cache


def held(world, shard):
    """id -> the bytes that are cached for it."""
    found = open_rows(world.cache_path(shard))
    return {identity: found.raw("n1")[row].tobytes() for row, identity in enumerate(found.ids)}


def everything(world):
    """All bytes below cache/."""
    return b"".join(path.read_bytes() for path in (world.root / "cache").rglob("*") if path.is_file())


def ids_of(world, shard, subject):
    found = world.rows(shard)
    return [identity for identity, name in zip(found.ids, found.subjects, strict=True) if name == subject]


def test_a_fresh_retraining_keeps_the_rows_of_the_others(build_world):
    world = build_world(insecure_seed=None)
    subject = world.rows(1).subjects[0]
    gone, before, other = ids_of(world, 1, subject), held(world, 1), world.cache_path(2).read_bytes()
    seen = []

    def retrain(shard):
        seen.append(held(world, shard))  # nobody reads a cache that still knows the subject
        return world.learn(shard)

    world.forget(subject, "retrain", retrain=retrain)
    expected = {identity: data for identity, data in before.items() if identity not in gone}
    assert len(expected) == 4
    assert seen == [expected]
    assert held(world, 1) == expected
    assert world.cache_path(2).read_bytes() == other
    for identity in gone:
        assert identity.encode() not in everything(world)
        assert bytes.fromhex(identity) not in everything(world)
    assert world.failed() == {}


def test_a_seeded_retraining_fills_its_cache_anew(world):
    subject = world.rows(1).subjects[0]
    seen = []
    world.forget(subject, "retrain", retrain=lambda shard: seen.append(world.cache_path(1).exists()) or world.learn(1))
    assert seen == [False]
    assert world.failed() == {}


def test_a_dropped_shard_keeps_no_cache(build_world):
    world = build_world(insecure_seed=None)
    world.forget(world.rows(0).subjects[0], "drop")
    assert not world.cache_path(0).exists()
    assert world.cache_path(1).exists()
    assert world.failed() == {}


def test_a_retraining_that_the_budget_refuses_drops_the_cache_too(build_world):
    world = build_world(insecure_seed=None)
    subject = world.rows(0).subjects[0]
    plan = world.plan(subject, "auto")
    world.budget = 1
    world.execute(plan, subject)
    assert world.component(0) is None
    assert not world.cache_path(0).exists()
    assert world.failed() == {}


def test_erasing_again_changes_nothing(world, monkeypatch):
    keep = world.rows(0).ids[1:]
    shard_cache.erase_rows(world.workspace, 0, keep=keep)
    before = world.cache_path(0).read_bytes()
    assert set(held(world, 0)) == set(keep)
    monkeypatch.setattr(rows, "writing", None)
    shard_cache.erase_rows(world.workspace, 0, keep=keep)
    assert world.cache_path(0).read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "foreign", "a row that stays"])
def test_what_can_not_be_understood_is_deleted(world, damage):
    path = world.cache_path(0)
    data, first = path.read_bytes(), world.rows(0).ids[0]
    at = data.index(bytes.fromhex(first))
    changed = {"truncated": data[:-1], "foreign": b"personal", "a row that stays": data[:at] + b"\0" + data[at + 1 :]}
    path.write_bytes(changed[damage])
    world.workspace.objects.write("cache/shard=000/other.bin", b"personal")
    shard_cache.erase_rows(world.workspace, 0, keep=[first])
    assert world.workspace.objects.list("cache/shard=000") == []
    shard_cache.erase_rows(world.workspace, 0, keep=[first])


def test_paths_and_their_shards(world):
    found = shard_cache.paths(world.workspace)
    assert [shard_cache.shard_of(path) for path in found] == [0, 1, 2]
    assert shard_cache.shard_of("cache/shard=0/constants.safetensors") is None
    assert shard_cache.shard_of("cache/other/constants.safetensors") is None
