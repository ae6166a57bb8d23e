"""Where a workspace holds rows of a subject, and how many."""

from __future__ import annotations

from dataclasses import dataclass

from privshard.core.partition import Partition
from privshard.data.shards import find_subject
from privshard.store.workspace import Workspace


@dataclass(frozen=True)
class Presence:
    """The shard that a subject's keyed hash names, and the rows about it there and among the held-out ones.

    The counts are confidential: they are about one person.
    """

    shard: int
    num_train_rows: int
    num_eval_rows: int

    @property
    def known(self) -> bool:
        """Whether there is any row."""
        return self.num_train_rows + self.num_eval_rows > 0


def find(workspace: Workspace, subject: str, *, partition: Partition) -> Presence:
    """Count a subject's rows where they can be: in the one shard its hash names, and in `data/eval`.

    No other partition is read; `verify` is what scans all of them. VerificationError where one of the two objects
    is missing or damaged.
    """
    shard = partition.shard_of(subject)
    return Presence(
        shard=shard,
        num_train_rows=find_subject(workspace.objects, workspace.shard_dir(shard), subject=subject),
        num_eval_rows=find_subject(workspace.objects, workspace.eval_dir(), subject=subject),
    )
