"""What a benchmark is called with and what it leaves behind: arguments, a table for people, JSON for machines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.benchmarks._machine import machine
from jobs.benchmarks._measure import Measured


def parser(description: str, *, model: str, batch: int) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes: --model, --device, --batch, --json."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    found.add_argument("--model", default=model, help="timm's name of a vision transformer; its weights are random")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    found.add_argument("--batch", type=int, default=batch, help="examples a batch")
    found.add_argument("--json", type=Path, help="file to write every figure to")
    return found


def row(found: Measured, *, floor_s: float | None = None, base_s: float | None = None) -> dict[str, Any]:
    """One line of the table: the figure, the floor of its work, and its time as a multiple of `base_s`."""
    ratio = found.median_s / base_s if found.median_s is not None and base_s else None
    return {**found.to_json(), "floor_s": floor_s, "ratio": ratio}


def finish(
    name: str, rows: Sequence[Mapping[str, Any]], *, arguments: argparse.Namespace, notes: Mapping[str, Any]
) -> dict[str, Any]:
    """Print the table, write the JSON file that was asked for, return what was written.

    notes: public facts of this run, such as the peaks behind the floors; printed under the table.
    """
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    report = {
        "benchmark": name,
        "machine": machine(arguments.device),
        "arguments": asked,
        "rows": [dict(item) for item in rows],
        "notes": dict(notes),
    }
    here = report["machine"]
    print(
        f"{name}: {arguments.model}, batch {arguments.batch}, on {here['device']}, "
        f"torch {here['torch']}, {here['date']}"
    )
    print(table(rows))
    for key, value in notes.items():
        print(f"{key}: {value}")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures in Markdown: examples a second, time, floor, share of the floor reached, ratio, memory."""
    head = ("what", "examples/s", "ms", "floor ms", "of floor", "ratio", "peak MiB")
    lines = [head, *(_cells(item) for item in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    shown.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in shown)


def _cells(item: Mapping[str, Any]) -> tuple[str, ...]:
    if item.get("error"):
        return (item["name"], item["error"], *("" for _ in range(5)))
    median, floor, ratio, peak = (item.get(key) for key in ("median_s", "floor_s", "ratio", "peak_bytes"))
    return (
        item["name"],
        f"{item['examples_per_s']:,.0f}" if item.get("examples_per_s") else "",
        "" if median is None else f"{1e3 * median:.3f}",
        "" if floor is None else f"{1e3 * floor:.3f}",
        "" if floor is None or not median else f"{100 * floor / median:.0f} %",
        "" if ratio is None else f"{ratio:.3f}",
        "" if peak is None else f"{peak / 2**20:,.0f}",
    )
