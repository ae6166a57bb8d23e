"""The table and the plots of the decomposition benchmark, from its lines of results."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmarks._decomposition_cells import LONGER, SAME, Settings, mean_of
from privshard.store.disk import write_whole

Lines = Sequence[Mapping[str, Any]]
STARTS = {
    "free": "recomposed, all components",
    "random": "random",
    "every_other": "every other block",
    "t0t1": "T₀ and T₁ alone",
    "distilled": "distilled to this depth",
    "scratch": "trained at this depth",
}
COLOURS = ("#2372b9", "#c8641a", "#3a8f5c", "#8a5fb0", "#6b7280", "#b03a5b")


def write_report(lines: Lines, settings: Settings, *, folder: Path, done: int, total: int) -> list[Path]:
    """Write report.md and the plots into `folder`; their paths. done: how many of the `total` cells that were asked for
    are in `lines`, which may hold others besides."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "report.md"]
    text = report_text(lines, settings, done=done, total=total)
    for name, draw in (("components", _draw_components), ("downstream", _draw_downstream)):
        figure = draw(lines, settings)
        if figure is not None:
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=150)
            text += f"\n![{name}]({name}.png)\n"
    write_whole(paths[0], text.encode())
    return paths


def report_text(lines: Lines, settings: Settings, *, done: int, total: int) -> str:
    """Markdown: the claims with their seeds, accuracy by components, downstream accuracy by start and depth."""
    besides = f", {len(lines) - done} besides" if len(lines) > done else ""
    parts = [
        f"# Decomposed transformers: {done} of {total} cells{besides}",
        f"Settings `{settings.digest}`: {settings}. Held-out accuracy; mean and, of several seeds, lowest to highest.",
        "## Claims",
        _table(("claim", "figure", "seeds", "holds"), claims(lines, settings)),
        "## Pretraining",
        _table(("data", "model", "depth", "components", "accuracy"), _pretraining(lines)),
        "## Downstream",
        _table(
            ("target", "start", "components", *(f"depth {d}" for d in settings.depths)), _downstream(lines, settings)
        ),
    ]
    return "\n\n".join(parts) + "\n"


def claims(lines: Lines, settings: Settings) -> list[tuple[str, str, int, str]]:
    """Each claim of the paper's kind: the figure, how many seeds it rests on, and whether its mean holds."""
    counts = np.cumsum(settings.added).tolist()
    full, few = counts[-1], counts[-3] if len(counts) > 2 else counts[0]
    data = next((line["data"] for line in lines if not line["target"]), "")
    pick: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for line in lines:
        if line["data"] == data and not line["target"] and line["depth"] == settings.depth:
            pick[line["start"]][line["seed"]] = line
    found = [_rises(pick["phased"].values(), counts)]
    longer, same = f"@{LONGER}", f"@{SAME}"
    reach = f"{full} components reach the undecomposed model within 0.5 points"
    tied = f"tied with {few} components loses at most 2 points to the undecomposed model"
    for claim, better, worse, least in (
        ("phased beats all at once", "phased", "at_once", 0.0),
        (reach, "phased", "plain", -0.005),
        (tied, "tied", "plain", -0.02),
        (f"phased beats all at once, {LONGER}", "phased" + longer, "at_once" + same, 0.0),
        (f"{reach}, {LONGER} and steps=2", "phased" + longer, "plain@steps=2", -0.005),
        (f"{reach}, {LONGER} and {SAME}", "phased" + longer, "plain" + same, -0.005),
        (f"{tied}, {LONGER} and {SAME}", "tied" + longer, "plain" + same, -0.02),
    ):
        seeds = sorted(pick[better].keys() & pick[worse].keys())
        gaps = [pick[better][seed]["accuracy"] - pick[worse][seed]["accuracy"] for seed in seeds]
        found.append(_claim(claim, gaps, least))
    for target in dict.fromkeys(line["target"] for line in lines if line["target"]):
        for depth in [depth for depth in settings.depths if depth >= 4]:
            ours, theirs = (
                {line["seed"]: line["accuracy"] for line in lines if _at(line, target, start, depth, count)}
                for start, count in (("free", full), ("random", 0))
            )
            gaps = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
            found.append(_claim(f"free beats random: {target}, depth {depth}", gaps, 0.0))
    return found


def _rises(phased: Any, counts: Sequence[int]) -> tuple[str, str, int, str]:
    curves = [[accuracy for _, accuracy in line["by_components"]] for line in phased]
    means = [mean_of(column) for column in zip(*curves, strict=True)]
    shown = ", ".join(f"{count}: {_percent(value)}" for count, value in zip(counts, means, strict=False))
    rises = bool(means) and all(a < b for a, b in itertools.pairwise(means))
    return "accuracy rises with the components", shown or "–", len(curves), _verdict(rises, bool(means))


def _claim(text: str, gaps: Sequence[float], least: float) -> tuple[str, str, int, str]:
    if not gaps:
        return text, "–", 0, "–"
    holds = mean_of(gaps) > least if least == 0 else mean_of(gaps) >= least - 1e-9  # 2.00 points are 2 points
    spread = f" ({100 * min(gaps):+.2f} to {100 * max(gaps):+.2f})" if len(gaps) > 1 else ""
    return text, f"{100 * mean_of(gaps):+.2f} points{spread}", len(gaps), _verdict(holds, True)


def _pretraining(lines: Lines) -> list[tuple[str, ...]]:
    groups: dict[tuple[str, str, int, int], list[float]] = {}
    for line in lines:
        if line["target"]:
            continue
        pairs = line.get("by_components") or [(line["components"], line["accuracy"])]
        for count, accuracy in pairs:
            groups.setdefault((line["data"], line["start"], line["depth"], count), []).append(accuracy)
    return [
        (data, start, str(depth), str(count) if count else "–", _spread(values))
        for (data, start, depth, count), values in groups.items()
    ]


def _downstream(lines: Lines, settings: Settings) -> list[tuple[str, ...]]:
    rows = dict.fromkeys((line["target"], line["start"], line["components"]) for line in lines if line["target"])
    return [
        (
            target,
            start,
            str(count) if count else "–",
            *(
                _spread([line["accuracy"] for line in lines if _at(line, target, start, depth, count)])
                for depth in settings.depths
            ),
        )
        for target, start, count in sorted(rows)
    ]


def _draw_components(lines: Lines, settings: Settings) -> Any:
    """Accuracy by components, the undecomposed model and all-at-once as lines."""
    from matplotlib.figure import Figure

    data = next((line["data"] for line in lines if not line["target"]), None)
    phased = [line for line in lines if line["data"] == data and _is(line, "phased", settings)]
    if not phased:
        return None
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for line in phased:
        axes.plot(*zip(*line["by_components"], strict=True), color=COLOURS[0], marker="o", markersize=4, alpha=0.7)
    for start, colour in (("plain", COLOURS[1]), ("at_once", COLOURS[2])):
        values = [line["accuracy"] for line in lines if line["data"] == data and _is(line, start, settings)]
        if values:
            label = {"plain": "undecomposed", "at_once": "all at once"}[start]
            axes.axhline(mean_of(values), color=colour, linewidth=1.3, linestyle=(0, (4, 3)), label=label)
    axes.plot([], [], color=COLOURS[0], marker="o", label="phased, one line a seed")
    axes.set_xticks(np.cumsum(settings.added).tolist())
    axes.set_xlabel("components")
    axes.set_ylabel(f"held-out accuracy, {data}")
    axes.legend(frameon=False, fontsize=8)
    _cleared(axes)
    return figure


def _draw_downstream(lines: Lines, settings: Settings) -> Any:
    """Accuracy over depth for each start, a panel for each target."""
    from matplotlib.figure import Figure

    targets = list(dict.fromkeys(line["target"] for line in lines if line["target"]))
    if not targets:
        return None
    full = int(sum(settings.added))
    figure = Figure(figsize=(4.8 * len(targets), 4.2), layout="constrained")
    for axes, target in zip(figure.subplots(1, len(targets), squeeze=False)[0], targets, strict=True):
        for start, colour in zip(STARTS, COLOURS, strict=True):
            count = {"free": full, "t0t1": 2}.get(start, 0)
            points = {
                depth: [line["accuracy"] for line in lines if _at(line, target, start, depth, count)]
                for depth in settings.depths
            }
            points = {depth: values for depth, values in points.items() if values}
            if points:
                means = [mean_of(values) for values in points.values()]
                low, high = ([edge(values) for values in points.values()] for edge in (min, max))
                axes.fill_between(list(points), low, high, color=colour, alpha=0.15, linewidth=0)
                axes.plot(list(points), means, color=colour, marker="o", markersize=4, label=STARTS[start])
        axes.set_title(target.replace("_", " "), loc="left", fontsize=10)
        axes.set_xlabel("depth")
        axes.set_ylabel("held-out accuracy")
        axes.set_xticks(settings.depths)
        _cleared(axes)
    named = {text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8,
        title="start; the band is from the lowest seed to the highest", title_fontsize=8,
    )  # fmt: skip
    return figure


def _cleared(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dce1e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _is(line: Mapping[str, Any], start: str, settings: Settings) -> bool:
    return not line["target"] and line["start"] == start and line["depth"] == settings.depth


def _at(line: Mapping[str, Any], target: str, start: str, depth: int, count: int) -> bool:
    return (line["target"], line["start"], line["depth"], line["components"]) == (target, start, depth, count)


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    if len(values) == 1:
        return _percent(values[0])
    return f"{_percent(mean_of(values))} ({_percent(min(values))} to {_percent(max(values))})"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _verdict(holds: bool, known: bool) -> str:
    return ("yes" if holds else "no") if known else "–"
