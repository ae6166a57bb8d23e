"""Where constants are kept: decided by what is asked and by what is free."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from privshard.core.errors import ResourceError

Where = Literal["device", "memory", "disk"]


@dataclass(frozen=True)
class Room:
    """Bytes that are free: on the computing device, in memory, on the cache's disk (None: there is no such disk)."""

    device: int
    memory: int
    disk: int | None


def choose(asked: str, *, num_bytes: int, room: Room) -> tuple[Where, bool]:
    """Where `num_bytes` of constants are kept while they are trained on, and whether they are stored on disk too.

    asked: `execution.cache`. "memory" stores nothing; "disk" maps what it stores; "auto" stores where at most half of
    the free disk is needed, and maps what exceeds half of the free memory. In memory, they are on the computing device
    where they need at most half of its free memory. ResourceError for "disk" without one.

    >>> choose("auto", num_bytes=6, room=Room(device=10, memory=12, disk=100))
    ('memory', True)
    """
    nearby: Where = "device" if 2 * num_bytes <= room.device else "memory"
    if asked == "memory":
        return nearby, False
    if asked == "disk":
        if room.disk is None:
            raise ResourceError(
                "execution.cache: expected a workspace on a local or mounted disk for a cache on disk, got none.",
                remedy="Set execution.cache to memory or auto.",
            )
        return "disk", True
    stored = room.disk is not None and 2 * num_bytes <= room.disk
    return ("disk" if stored and nearby == "memory" and 2 * num_bytes > room.memory else nearby), stored


def free_room(device: str, path: Path | None) -> Room:
    """What is free now: on `device`, in memory, and on the disk of `path`."""
    memory = _free_memory()
    on_device = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else memory
    return Room(on_device, memory, None if path is None else _free_disk(path))


def _free_memory() -> int:
    """What the kernel calls available, within the limit of this container."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdigit():
        free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def _free_disk(path: Path) -> int:
    """Of the disk that holds the nearest folder that exists."""
    return shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().split("\n")
    except OSError:
        return []
