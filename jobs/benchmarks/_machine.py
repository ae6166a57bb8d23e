"""The machine a figure was measured on: its name, its software, its peaks, and the least time that work can take."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.benchmarks._measure import seconds

_PUBLISHED = {  # dense bf16 matrix operations a second, bytes a second, by NVIDIA's data sheets
    "H200": (989.4e12, 4.8e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100 NVL": (835e12, 3.9e12),
    "H100": (989.4e12, 3.35e12),
    "A100-SXM4-80GB": (312e12, 2.039e12),
    "A100 80GB PCIe": (312e12, 1.935e12),
    "A100": (312e12, 1.555e12),
    "L40S": (362e12, 0.864e12),
    "L4": (121e12, 0.3e12),
}


@dataclass(frozen=True)
class Peaks:
    """The most a device does: floating-point operations a second (a product and a sum are two), bytes moved a second.

    source: "published" by the maker, or "measured" here with a large matrix product and a large copy.
    """

    flops_per_s: float
    bytes_per_s: float
    source: str

    def floor_s(self, *, flops: float, num_bytes: float) -> float:
        """The least time for this work: arithmetic and memory traffic overlap perfectly, neither ever waits."""
        return max(flops / self.flops_per_s, num_bytes / self.bytes_per_s)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def peaks(device: str, *, dtype: torch.dtype) -> Peaks:
    """What the maker publishes for a known GPU in bf16; otherwise what a matrix product in `dtype` and a copy reach."""
    if device.startswith("cuda") and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, figures in _PUBLISHED.items():
            if known in name:
                return Peaks(*figures, source="published")
    return measured_peaks(device, dtype=dtype)


def measured_peaks(device: str, *, dtype: torch.dtype) -> Peaks:
    """A square matrix product's operations and a copy's traffic a second, the best of five."""
    size = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product_s = min(seconds(lambda: a @ b, device=device) for _ in range(5))
    source = torch.empty(2**28 if device.startswith("cuda") else 2**25, device=device)
    target = torch.empty_like(source)
    copy_s = min(seconds(lambda: target.copy_(source), device=device) for _ in range(5))
    return Peaks(2 * size**3 / product_s, 2 * source.nbytes / copy_s, source="measured")


def count_flops(function: Callable[[], object]) -> int:
    """Operations of the matrix products, convolutions and attentions in one call: run it on a small batch, and scale.

    Elementwise work isn't counted, so a floor by this number is a true lower bound.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def machine(device: str) -> dict[str, Any]:
    """Names and versions that a figure is worth nothing without."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": gpu or _cpu_name(),
        "cpu": _cpu_name(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
