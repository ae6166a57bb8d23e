"""The partition depends on the key, the number of shards and that subject alone."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privshard.core.errors import InputError
from privshard.core.partition import Partition

KEYS = st.binary(min_size=32, max_size=32)
SUBJECTS = [f"subject {number}" for number in range(4000)]


@given(KEYS, st.integers(1, 50), st.text())
def test_shard_is_in_range_and_a_function(key, num_shards, subject):
    shard = Partition(key=key, num_shards=num_shards).shard_of(subject)
    assert shard in range(num_shards)
    assert Partition(key=key, num_shards=num_shards).shard_of(subject) == shard


@given(KEYS, st.integers(1, 50), st.text())
def test_shard_agrees_with_the_stated_hash(key, num_shards, subject):
    raw = subject.encode()
    digest = hashlib.blake2b(
        len(raw).to_bytes(8, "little") + raw, key=key, digest_size=32, person=b"privshard.shard"
    ).digest()
    assert (
        Partition(key=key, num_shards=num_shards).shard_of(subject) == int.from_bytes(digest[:16], "big") % num_shards
    )


def test_shards_are_about_equal_in_size():
    counts = Counter(Partition(key=bytes(32), num_shards=8).shard_of(subject) for subject in SUBJECTS)
    assert sorted(counts) == list(range(8))
    assert all(abs(count - 500) < 110 for count in counts.values())  # 5 standard deviations


def test_another_key_is_another_partition():
    one, other = (Partition(key=bytes([number]) * 32, num_shards=8) for number in (1, 2))
    agreeing = sum(one.shard_of(subject) == other.shard_of(subject) for subject in SUBJECTS)
    assert abs(agreeing - 500) < 110


def test_a_keyed_tenth_is_held_out_whatever_the_shards():
    few, many = (Partition(key=bytes(32), num_shards=number) for number in (2, 8))
    held = [subject for subject in SUBJECTS if few.held_out(subject)]
    assert held == [subject for subject in SUBJECTS if many.held_out(subject)]
    assert abs(len(held) - 400) < 95
    assert all(few.held_out(subject, one_in=1) for subject in SUBJECTS[:20])
    # Held out and sharded by different hashes: the held-out tenth is spread over the shards.
    assert len({many.shard_of(subject) for subject in held}) == 8


def test_bad_parameters_are_named():
    with pytest.raises(InputError, match="shards: expected at least 1, got 0"):
        Partition(key=bytes(32), num_shards=0)
    with pytest.raises(InputError, match="expected 32 bytes, got 16"):
        Partition(key=bytes(16), num_shards=1)


def test_repr_hides_the_key():
    assert "key" not in repr(Partition(key=b"k" * 32, num_shards=1))
