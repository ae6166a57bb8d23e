"""The accuracy table for people: Markdown, and curves of accuracy against shards, epsilon and removal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Result = Mapping[str, Any]
_REMOVED = "share of the shards removed"


def markdown(results: Sequence[Result]) -> str:
    """One table a data set and unit: a row a method and number of shards, a column an epsilon."""
    lines: list[str] = []
    for data, unit in sorted({(item["data"], item["unit"]) for item in results}):
        here = [item for item in results if (item["data"], item["unit"]) == (data, unit)]
        epsilons = sorted({item["epsilon"] for item in here}, key=_last_none)
        lines += [f"### {data}, unit {unit}", ""]
        lines += [f"| method | shards | {' | '.join(map(_epsilon, epsilons))} |", "| --- " * (len(epsilons) + 2) + "|"]
        groups: dict[tuple[str, int, int], dict[Any, list[Result]]] = defaultdict(lambda: defaultdict(list))
        for item in here:
            groups[(item["method"], item["blocks"], item["shards"])][item["epsilon"]].append(item)
        for (method, blocks, shards), by_epsilon in sorted(groups.items()):
            cells = [_cell(by_epsilon.get(epsilon, [])) for epsilon in epsilons]
            lines.append(f"| {label(method, blocks)} | {shards} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def label(method: str, blocks: int) -> str:
    """A method in words: "tangent, 4 blocks"."""
    return method if not blocks else f"{method}, {blocks} block{'s' if blocks > 1 else ''}"


def curves(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draw the three kinds of curves of every data set as PNG; the files."""
    written = []
    for data in sorted({item["data"] for item in results}):
        here = [item for item in results if item["data"] == data and item["unit"] == "example"]
        shards = _lines(here, "shards", by="epsilon")
        written += _draw(folder / f"{data}-shards.png", shards, axis="shards")
        private = [item for item in here if item["epsilon"] is not None]
        written += _draw(folder / f"{data}-epsilon.png", _lines(private, "epsilon", by="shards"), axis="epsilon")
        removed: dict[str, list[tuple[float, float]]] = {}
        for item in here:
            if item.get("removed") and item["seed"] == 0 and item["shards"] >= 10:
                name = f"{label(item['method'], item['blocks'])}, {item['shards']} shards, {_epsilon(item['epsilon'])}"
                removed[name] = [(float(share), value) for share, value in item["removed"].items()]
        written += _draw(folder / f"{data}-removed.png", removed, axis=_REMOVED)
    return written


def _lines(results: Sequence[Result], x: str, *, by: str) -> dict[str, list[tuple[float, float]]]:
    """Name of a line -> its points, the mean over seeds; lines of one point are left out."""
    points: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in results:
        other = _epsilon(item["epsilon"]) if by == "epsilon" else f"{item['shards']} shard(s)"
        points[f"{label(item['method'], item['blocks'])}, {other}"][item[x]].append(item["accuracy"])
    found = {name: sorted((at, mean(values)) for at, values in each.items()) for name, each in sorted(points.items())}
    return {name: each for name, each in found.items() if len(each) > 1}


def _draw(path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], *, axis: str) -> list[Path]:
    if not lines:
        return []
    from privshard.report.curves import write_curves

    path.parent.mkdir(parents=True, exist_ok=True)
    write_curves(path, lines, axis=axis, value="accuracy", logarithmic=axis != _REMOVED)
    return [path]


def _cell(items: Sequence[Result]) -> str:
    if not items:
        return ""
    values = [item["accuracy"] for item in items]
    spread = f" ({min(values):.3f} to {max(values):.3f}, {len(values)} seeds)" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def _epsilon(value: float | None) -> str:
    return "no privacy" if value is None else f"epsilon {value:g}"


def _last_none(value: float | None) -> tuple[bool, float]:
    return value is None, value or 0.0
