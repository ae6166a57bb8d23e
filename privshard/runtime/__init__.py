"""Where shard functions run: in this process, or on a Ray cluster. The only package that imports ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from privshard.runtime.shard_function import ShardFunction

if TYPE_CHECKING:
    from privshard.runtime.local import LocalExecutor
    from privshard.runtime.ray_executor import RayExecutor


def make_executor(
    run: ShardFunction,
    *,
    base_state: Mapping[str, np.ndarray] | None = None,
    address: str = "local",
    gpus_per_shard: Literal["auto"] | float = "auto",
    cpus_per_shard: float = 1.0,
    schedule_timeout_s: float = 30.0,
    queue_timeout_s: float = 3600.0,
    stall_timeout_s: float = 1800.0,
    urgent: bool = False,
) -> LocalExecutor | RayExecutor:
    """The executor for an address: "none" this process, "local" a Ray of its own, otherwise a running Ray cluster.

    Both run the same shard function; seeded, with the same thread count and device, they give bit-identical results.
    Nothing is started and ray is not imported before the executor is first used.
    """
    if address == "none":
        from privshard.runtime.local import LocalExecutor

        return LocalExecutor(run, base_state=base_state)
    from privshard.runtime.ray_executor import RayExecutor

    return RayExecutor(
        run,
        base_state=base_state,
        address=address,
        gpus_per_shard=gpus_per_shard,
        cpus_per_shard=cpus_per_shard,
        schedule_timeout_s=schedule_timeout_s,
        queue_timeout_s=queue_timeout_s,
        stall_timeout_s=stall_timeout_s,
        urgent=urgent,
    )
