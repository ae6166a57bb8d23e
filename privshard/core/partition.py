"""The partition: a keyed hash that sends every subject to one shard."""

from __future__ import annotations

from dataclasses import dataclass, field

from privshard.core.digest import keyed_digest
from privshard.core.errors import InputError


@dataclass(frozen=True)
class Partition:
    """Subject -> shard by keyed hash; depends on the key, the number of shards and that subject alone.

    The key is drawn once, before any data is seen (`privshard.store.secrets`). Because no other subject enters,
    adding or removing one changes the contents of exactly one shard: that is what parallel composition of the
    shards' privacy needs, and why balanced, clustered or positional splits are not offered.

    >>> Partition(key=bytes(32), num_shards=4).shard_of("ada") in range(4)
    True
    """

    key: bytes = field(repr=False)
    num_shards: int

    def __post_init__(self) -> None:
        if self.num_shards < 1:
            raise InputError(f"shards: expected at least 1, got {self.num_shards}.", remedy="Set shards to 1 or more.")
        if len(self.key) != 32:
            raise InputError(f"partition key: expected 32 bytes, got {len(self.key)}.")

    def shard_of(self, subject: str) -> int:
        """The shard, 0 to num_shards - 1, of `subject`."""
        return int(keyed_digest(self.key, "privshard.shard", subject)[:32], 16) % self.num_shards

    def held_out(self, subject: str, *, one_in: int = 10) -> bool:
        """Whether `subject` belongs to the keyed tenth that is kept for evaluation when the data names no split."""
        return int(keyed_digest(self.key, "privshard.hold", subject)[:32], 16) % one_in == 0
