"""How fast and where something runs; nothing here may change a guarantee."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from privshard.core.errors import InputError


@dataclass(frozen=True)
class ExecutionFlags:
    """Speed settings of one shard's training. Results agree across them up to rounding.

    device: "auto" takes a GPU where one is visible. dtype: of the frozen computation; displacements are fp32.
    micro_batch: images a forward pass. threads: CPU threads of one worker (bit-equality needs the same number).
    cache: where the base's constants are kept. "memory": nowhere else; "disk": in the workspace, mapped into memory and
    read batch by batch; "auto": in the workspace where it has room, mapped if they exceed half of the free memory.
    compile: whether the frozen base and the steps are compiled; "auto": on GPUs, for enough work to pay for the time it
    takes.
    """

    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batch: int = 64
    threads: int = 1
    cache: Literal["auto", "memory", "disk"] = "auto"
    compile: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name in ("micro_batch", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"execution.{name}: expected at least 1, got {getattr(self, name)}.")
