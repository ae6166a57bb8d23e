"""Time and memory of functions: warmed up, in turns, medians; what cannot run says why instead of ending the others."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Measured:
    """What one function took. Times are of one call, in seconds, over `repeats` calls after the warm-up.

    peak_bytes: on a GPU the most that torch had allocated during a call, what was there before (`held_bytes`) included;
    on a CPU the most that the process held in memory (Linux; None elsewhere). error: why there is no figure.
    """

    name: str
    examples: int
    median_s: float | None = None
    min_s: float | None = None
    max_s: float | None = None
    repeats: int = 0
    warm_up_s: float | None = None
    held_bytes: int | None = None
    peak_bytes: int | None = None
    error: str | None = None

    @property
    def examples_per_s(self) -> float | None:
        """Examples a second at the median."""
        return self.examples / self.median_s if self.median_s else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "examples_per_s": self.examples_per_s}


def measure(
    cases: Mapping[str, Callable[[], object]],
    *,
    examples: int,
    device: str,
    warm_up: int = 2,
    repeats: int = 7,
    limit_s: float = 30.0,
    memory: bool = True,
) -> dict[str, Measured]:
    """Measure every case, by name: one call handles `examples` examples.

    Calls are timed in turns (a, b, a, b, …), so that a clock that drops or a neighbour that comes slows all of them
    alike, and the device is idle before and after each. `limit_s` bounds the timed calls of one case: a slow one is
    repeated less often, but once at least. A case that raises is kept with its error: a peer that runs out of memory
    is a result too. memory: whether one more call is watched for it, with what all the cases hold.
    """
    results = {name: _first_calls(name, case, examples, device, warm_up, memory) for name, case in cases.items()}
    times: dict[str, list[float]] = {name: [] for name, found in results.items() if found.error is None}
    for _ in range(repeats):
        for name, taken in list(times.items()):
            if taken and sum(taken) + taken[-1] > limit_s:
                continue
            try:
                taken.append(seconds(cases[name], device=device))
            except Exception as error:
                results[name] = _failed(name, examples, error)
                del times[name]
    for name, taken in times.items():
        spread = {"median_s": statistics.median(taken), "min_s": min(taken), "max_s": max(taken)}
        results[name] = Measured(**{**asdict(results[name]), **spread, "repeats": len(taken)})
    return results


def seconds(function: Callable[[], object], *, device: str) -> float:
    """How long one call takes until the device has done its work."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: str) -> None:
    """Wait until the device has done everything that was asked of it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_memory(function: Callable[[], object], *, device: str) -> tuple[int | None, int | None]:
    """(held before, peak during) one call, in bytes; see `Measured`."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        function()
        synchronize(device)
        return held, torch.cuda.max_memory_allocated(device)
    held = _status_bytes("VmRSS")
    restarted = _restart_peak()
    function()
    return held, _status_bytes("VmHWM") if restarted else None


def kernels(function: Callable[[], object], *, longest: int = 12) -> dict[str, Any]:
    """What a CUDA device did in one call: the time of its kernels and copies together, their number, and the longest
    by name. A call that takes more is waiting for the CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    found = sorted(profiler.key_averages(), key=lambda event: event.self_device_time_total, reverse=True)
    return {
        "device_ms": sum(event.self_device_time_total for event in found) / 1e3,
        "launches": sum(event.count for event in found if event.self_device_time_total),
        "longest_ms": {event.key[:80]: event.self_device_time_total / 1e3 for event in found[:longest]},
    }


def _first_calls(
    name: str, case: Callable[[], object], examples: int, device: str, warm_up: int, memory: bool
) -> Measured:
    """The calls that compile and allocate, and one that is watched for memory."""
    try:
        taken = sum(seconds(case, device=device) for _ in range(warm_up))
        held, peak = peak_memory(case, device=device) if memory else (None, None)
    except Exception as error:
        return _failed(name, examples, error)
    return Measured(name, examples, warm_up_s=taken, held_bytes=held, peak_bytes=peak)


def _failed(name: str, examples: int, error: Exception) -> Measured:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    text = " ".join(str(error).split())
    kind = "out of memory" if isinstance(error, torch.cuda.OutOfMemoryError) else type(error).__name__
    return Measured(name, examples, error=f"{kind}: {text[:200]}")


def _status_bytes(key: str) -> int | None:
    """A line of /proc/self/status in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _restart_peak() -> bool:
    """Let Linux forget the process' highest memory so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
