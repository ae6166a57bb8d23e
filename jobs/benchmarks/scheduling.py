"""What surrounds a shard costs: `python -m jobs.benchmarks.scheduling --shards 1000 --json scheduling.json`.

A thousand shards whose training takes no time run on two Ray workers, so that the wall time of the stage is overhead:
reserving, starting, sending, reading rows, collecting, writing the component, committing. The controller's memory is
sampled on the way.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from jobs.benchmarks.small_data import small_recipe, write_small_data
from jobs.benchmarks.stand_in import standing_in
from privshard import api
from privshard.api.recipe import Recipe
from privshard.core.jobs import Progress

SAMPLES = 20


@dataclass
class Memory:
    """The controller's resident memory, sampled as shards are done."""

    every: int
    points: list[tuple[int, float]] = field(default_factory=list)
    begun_s: float | None = None
    begun_cpu_s: float = 0.0

    def __call__(self, progress: Progress) -> None:
        """Take one piece of news."""
        if progress.stage != "shards":
            return
        if self.begun_s is None:
            self.begun_s, self.begun_cpu_s = time.perf_counter(), time.process_time()
        if progress.done % self.every == 0 or progress.done == progress.total:
            self.points.append((progress.done, resident_mib()))


@dataclass(frozen=True)
class Cost:
    """The result. overhead_ms: wall time a shard after the first one was done, which leaves out starting Ray; cpu_ms:
    the controller's own processor time of it; fsync_ms: what one durable write cost on this disk meanwhile, of which a
    shard needs eight; load: of the machine when the stage ended."""

    shards: int
    cpus: int
    address: str
    stage_s: float
    overhead_ms: float
    cpu_ms: float
    fsync_ms: float
    load: float
    memory_mib: list[tuple[int, float]]
    growth_mib: float
    machine: str
    date: str


def measure(shards: int, *, address: str, cpus: int, folder: Path) -> Cost:
    """Train `shards` stand-ins on a Ray of our own with `cpus` slots, or in this process (address none)."""
    recipe = small_recipe(
        write_small_data(folder / "people.parquet"),
        shards=shards,
        insecure_seed=5,
        ray={"address": address, "gpus_per_shard": 0, "schedule_timeout_s": 120.0},
        method={"name": "head"},
    )
    memory = Memory(every=max(1, shards // SAMPLES))
    if address != "none":
        import ray

        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with standing_in({"head.weight": (10, 192), "head.bias": (10,)}, work_s=0.0):
            done = _train(recipe, str(folder / "workspace"), memory)
    finally:
        if address != "none":
            import ray

            ray.shutdown()
    begun, (ended, ended_cpu) = memory.begun_s or 0.0, done
    half = [mib for count, mib in memory.points if count >= shards // 2]
    return Cost(
        shards=shards,
        cpus=cpus,
        address=address,
        stage_s=ended - begun,
        overhead_ms=1000 * (ended - begun) / max(1, shards - 1),
        cpu_ms=1000 * (ended_cpu - memory.begun_cpu_s) / max(1, shards - 1),
        fsync_ms=1000 * fsync_s(folder / "probe"),
        load=os.getloadavg()[0],
        memory_mib=memory.points,
        growth_mib=half[-1] - half[0] if half else 0.0,
        machine=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        date=datetime.now(UTC).date().isoformat(),
    )


def resident_mib() -> float:
    """This process's resident memory, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def fsync_s(path: Path, *, times: int = 20) -> float:
    """The median seconds that making a small write durable takes."""
    taken = []
    with path.open("wb") as file:
        for _ in range(times):
            file.write(b"x")
            file.flush()
            begun = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - begun)
    return sorted(taken)[times // 2]


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print; exit status 1 above --limit-ms."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--address", choices=("local", "none"), default="local")
    parser.add_argument("--limit-ms", type=float, default=50.0, help="the overhead a shard that is still fine")
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args(given)
    folder = Path(tempfile.mkdtemp(prefix="privshard-scheduling-"))
    os.environ["PRIVSHARD_KEYS_DIR"] = str(folder / "keys")
    try:
        cost = measure(options.shards, address=options.address, cpus=options.cpus, folder=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{cost.shards} shards on {cost.cpus} workers: {cost.overhead_ms:.1f} ms a shard, {cost.cpu_ms:.1f} ms of them "
        f"at work in the controller (an fsync takes {cost.fsync_ms:.1f} ms, the machine's load is {cost.load:.1f}); "
        f"it grew by {cost.growth_mib:.1f} MiB over the second half"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(asdict(cost), indent=1))
    return int(cost.overhead_ms > options.limit_ms)


def _train(recipe: Recipe, workspace: str, memory: Memory) -> tuple[float, float]:
    """Train; when the last shard was done, by the clock and in processor time."""
    last = (0.0, 0.0)

    def hear(progress: Progress) -> None:
        nonlocal last
        memory(progress)
        if progress.stage == "shards":
            last = (time.perf_counter(), time.process_time())

    api.train(recipe, workspace=workspace, on_progress=hear)
    return last


if __name__ == "__main__":
    sys.exit(main())
