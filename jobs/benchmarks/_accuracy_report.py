"""The accuracy table for people: Markdown, and curves of accuracy against shards, epsilon and removal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Result = Mapping[str, Any]
_PANELS = {"shards": "shards", "epsilon": "epsilon", "removed": "shards removed, %"}
_COLOURS = {
    "head": "#6b7280",
    "tangent, 1 block": "#1f5fa8",
    "tangent, 4 blocks": "#d1602a",
    "tangent, 12 blocks": "#3b8f5a",
    "full, 12 blocks": "#8a4fa3",
}
_STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (5, 2, 1, 2)), (0, (1, 1.5)))


def markdown(results: Sequence[Result]) -> str:
    """One table a data set and unit: a row a method and number of shards, a column an epsilon.

    Of several seeds: the mean (lowest to highest; how many). Weights averaged; for shards that are not linear in
    their weights the mean of their logits too, which is SISA's.
    """
    lines: list[str] = []
    for data, unit in sorted({(item["data"], item["unit"]) for item in results}):
        here = [item for item in results if (item["data"], item["unit"]) == (data, unit)]
        epsilons = sorted({item["epsilon"] for item in here}, key=_last_none)
        lines += [f"### {data}, unit {unit}", ""]
        lines += [f"| method | shards | {' | '.join(map(_epsilon, epsilons))} |", "| --- " * (len(epsilons) + 2) + "|"]
        groups: dict[tuple[str, int, int], dict[Any, list[Result]]] = defaultdict(lambda: defaultdict(list))
        for item in here:
            groups[(item["method"], item["blocks"], item["shards"])][item["epsilon"]].append(item)
        for (method, blocks, shards), by_epsilon in sorted(groups.items(), key=_order):
            cells = [[item["accuracy"] for item in by_epsilon[epsilon]] for epsilon in epsilons]
            lines.append(_row(label(method, blocks), shards, cells))
            if method == "full" and shards > 1:
                cells = [[item["ensemble"] for item in by_epsilon[epsilon]] for epsilon in epsilons]
                lines.append(_row(f"{label(method, blocks)}: ensemble", shards, cells))
        lines.append("")
    return "\n".join(lines)


def label(method: str, blocks: int) -> str:
    """A method in words: "tangent, 4 blocks"."""
    return method if not blocks else f"{method}, {blocks} block{'s' if blocks > 1 else ''}"


def curves(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draw every data set as one PNG: accuracy (unit example, mean over seeds) by shards, by epsilon, and after
    removing some of the shards; the files. A colour is a method, the kind of a line its epsilon or number of shards."""
    written = []
    for data in sorted({item["data"] for item in results}):
        here = [item for item in results if item["data"] == data and item["unit"] == "example"]
        lines = {panel: _lines(here, panel) for panel in _PANELS}
        if any(lines.values()):
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"{data}.png")
            _draw(lines, title=data).savefig(written[-1], dpi=150)
    return written


def _lines(results: Sequence[Result], panel: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(method, kind of line) -> its points; removals from the most shards alone."""
    points: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    most = max((item["shards"] for item in results), default=0)
    for item in results:
        method = label(item["method"], item["blocks"])
        if panel == "epsilon" and item["epsilon"] is not None:
            shards = "1 shard" if item["shards"] == 1 else f"{item['shards']} shards"
            points[(method, shards)][item["epsilon"]].append(item["accuracy"])
        if panel == "shards":
            points[(method, _epsilon(item["epsilon"]))][item["shards"]].append(item["accuracy"])
        if panel == "removed" and item["shards"] == most:
            for share, accuracy in item.get("removed", {}).items():
                points[(method, _epsilon(item["epsilon"]))][100 * float(share)].append(accuracy)
    return {key: sorted((at, mean(values)) for at, values in each.items()) for key, each in sorted(points.items())}


def _draw(lines: Mapping[str, Mapping[tuple[str, str], Sequence[tuple[float, float]]]], *, title: str) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(13.0, 4.6), layout="constrained")
    methods = [method for method in _COLOURS if any(method == name for panel in lines.values() for name, _ in panel)]
    for axes, (panel, text) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        kinds = sorted({kind for _, kind in lines[panel]}, key=_number)
        weightiest_first = kinds if panel == "epsilon" else kinds[::-1]  # one shard, or no privacy: a solid line
        styles = {kind: _STYLES[index % len(_STYLES)] for index, kind in enumerate(weightiest_first)}
        for (method, kind), points in lines[panel].items():
            axes.plot(
                *zip(*points, strict=True), color=_COLOURS[method], linestyle=styles[kind], marker="o", markersize=4
            )
        if panel != "removed" and lines[panel]:
            ticks = sorted({at for points in lines[panel].values() for at, _ in points})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
            axes.minorticks_off()
        axes.set_xlabel(text)
        axes.set_ylabel("accuracy")
        axes.grid(color="#dce1e6", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if kinds:
            shown = [Line2D([], [], color="#444", linestyle=styles[kind], label=kind) for kind in kinds]
            axes.legend(handles=shown, frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    figure.suptitle(title.replace("_", " "), x=0.01, ha="left", fontsize=11)
    shown = [Line2D([], [], color=_COLOURS[method], marker="o", markersize=4, label=method) for method in methods]
    figure.legend(handles=shown, loc="outside lower center", ncols=len(methods), frameon=False, fontsize=9)
    return figure


def _number(kind: str) -> float:
    """The number in the name of a kind of line; without one, above all."""
    digits = [word for word in kind.split() if word[0].isdigit()]
    return float(digits[0]) if digits else float("inf")


def _order(group: tuple[tuple[str, int, int], Any]) -> tuple[bool, int, int]:
    (method, blocks, shards), _ = group
    return method == "full", blocks, shards


def _row(name: str, shards: int, cells: Sequence[Sequence[float]]) -> str:
    return f"| {name} | {shards} | {' | '.join(map(_cell, cells))} |"


def _cell(values: Sequence[float]) -> str:
    spread = f" ({min(values):.3f} to {max(values):.3f}; {len(values)})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}" if values else ""


def _epsilon(value: float | None) -> str:
    return "no privacy" if value is None else f"epsilon {value:g}"


def _last_none(value: float | None) -> tuple[bool, float]:
    return value is None, value or 0.0
