"""Plots of edits as files: the Pareto front of places, curves over strength, the mask over layers, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.core.errors import InputError
from privshard.report.svg import new_figure
from privshard.store.disk import make_folder, write_whole

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from PIL.Image import Image

COLOURS = ("#1f5fa8", "#d1602a", "#3b8f5a", "#8a4fa3", "#a8842a", "#b0304f", "#4a7f8f", "#6b6b6b", "#202020", "#8fa83b")
MARKERS = "osD^vP*Xph"


def pareto_plot(path: Path, candidates: Sequence[Mapping[str, Any]], *, chosen: str) -> None:
    """Generalization against locality of every candidate of a search; the front joined, numbered and named."""
    figure = new_figure(8.4, 4.6)
    axes = figure.add_subplot()
    for candidate in candidates:
        x, y, name = candidate["locality"], candidate["generalization"], candidate["places"]
        colour = {"FFN": COLOURS[0], "attention": COLOURS[1], "both": COLOURS[3]}[_kind(name)]
        axes.scatter([x], [y], s=60 if name == chosen else 28, color=colour, zorder=3,
                     edgecolors="black" if name == chosen else "none", linewidths=1.4)  # fmt: skip
    front = sorted((c["locality"], c["generalization"], c["places"]) for c in candidates if c["on_front"])
    axes.plot([x for x, _, _ in front], [y for _, y, _ in front], color="#999999", linewidth=1, zorder=2)
    named = {(x, y): _short(name) for x, y, name in front}
    picked = f"{_short(chosen)} (chosen)"
    named |= {(c["locality"], c["generalization"]): picked for c in candidates if c["places"] == chosen}
    listed = []
    for number, ((x, y), name) in enumerate(sorted(named.items()), start=1):
        # names are as long as the plot is wide: they stand beside it, where they can't cover each other
        axes.annotate(str(number), (x, y), xytext=(0, 8), textcoords="offset points", fontsize=8, ha="center")
        listed.append(f"{number}  {name}")
    axes.text(1.02, 0.78, "\n".join(["On the front:", *listed]), transform=axes.transAxes, fontsize=8, va="top",
              linespacing=1.5)  # fmt: skip
    kinds = {"FFN": COLOURS[0], "attention": COLOURS[1], "both": COLOURS[3]}
    used = {_kind(candidate["places"]) for candidate in candidates}
    for label, colour in ((label, kinds[label]) for label in kinds if label in used):
        axes.scatter([], [], s=28, color=colour, label=label)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    axes.set_xlabel("locality: predictions kept on sensitive examples")
    axes.set_ylabel("generalization: accuracy on the others of the group")
    axes.margins(0.12)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    save_figure(figure, path)


def front_plot(path: Path, curves: Mapping[str, np.ndarray], *, title: str) -> None:
    """The mean (generalization, locality) of each method, one point a strength, joined in order."""
    figure = new_figure(7.4, 5.0)
    axes = figure.add_subplot()
    for at, (name, points_S2) in enumerate(curves.items()):
        ours = {"markersize": 7, "linewidth": 2.2, "zorder": 4} if at == 0 else {"markersize": 5, "linewidth": 1.1}
        marker, colour = MARKERS[at % len(MARKERS)], COLOURS[at % len(COLOURS)]
        axes.plot(points_S2[:, 1], points_S2[:, 0], color=colour, marker=marker, label=name, **ours)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_xlabel("locality: predictions kept on sensitive examples")
    axes.set_ylabel("generalization: accuracy on the others of the group")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    save_figure(figure, path)


def mask_plot(path: Path, shares: Mapping[str, Mapping[str, Sequence[float]]], *, title: str) -> None:
    """How much of each matrix is kept: method -> matrix -> one share for each edit; bars are means, dots are edits."""
    figure = new_figure(7.4, 3.6)
    axes = figure.add_subplot()
    names = list(next(iter(shares.values())))
    wide = 0.8 / len(shares)
    for at, (method, by_name) in enumerate(shares.items()):
        places = [slot + (at - (len(shares) - 1) / 2) * wide for slot in range(len(names))]
        means = [sum(by_name[name]) / len(by_name[name]) for name in names]
        axes.bar(places, means, width=wide * 0.92, color=COLOURS[at], label=method, alpha=0.85)
        for place, name in zip(places, names, strict=True):
            axes.scatter([place] * len(by_name[name]), by_name[name], s=4, color="#333333", alpha=0.25, zorder=3)
    axes.set_xticks(
        range(len(names)),
        [name.removesuffix(".weight").replace("blocks.", "block ").replace(".mlp.", "\n") for name in names],
    )
    axes.set_ylabel("share of neurons kept")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, title="bars: means; dots: edits", title_fontsize=8, loc="upper left",
                bbox_to_anchor=(1.0, 1.0))  # fmt: skip
    axes.set_title(title, fontsize=10, loc="left")
    save_figure(figure, path)


def before_after_plot(path: Path, rows: Sequence[tuple[Image, str, str, str]], *, title: str) -> None:
    """Images with their label and the prediction before and after: (image, label, before, after) each. The first is
    the one that was edited, and is marked so."""
    columns = min(6, len(rows))
    lines = -(-len(rows) // columns)
    figure = new_figure(1.75 * columns, 2.2 * lines + 0.3)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    for at in range(columns * lines):
        axes = figure.add_subplot(lines, columns, at + 1)
        axes.axis("off")
        if at < len(rows):
            image, label, before, after = rows[at]
            axes.imshow(image)
            right = after == label
            told = f"label {label}, edited" if at == 0 else f"label {label}"
            axes.set_title(f"{told}\n{before} → {after}", fontsize=8, color=COLOURS[2] if right else COLOURS[5])
    save_figure(figure, path)


def _kind(places: str) -> str:
    """What a group of places consists of."""
    return "FFN" if "attention" not in places else "attention" if "ffn" not in places else "both"


def _short(places: str) -> str:
    """The places for a label: ffn:7,ffn:8,ffn:9 becomes ffn 7–9."""
    blocks: dict[str, list[int]] = {}
    for part in places.split(","):
        kind, _, block = part.partition(":")
        blocks.setdefault(kind, []).append(int(block))
    named = []
    for kind, numbers in sorted(blocks.items(), reverse=True):  # ffn before attention
        numbers.sort()
        runs = [[number] for number in numbers[:1]]
        for number in numbers[1:]:
            if number == runs[-1][-1] + 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        shown = [f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
        named.append(f"{kind} {', '.join(shown)}")
    return " + ".join(named)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as .svg or .png, whole or not at all; the same figure gives the same bytes."""
    import matplotlib

    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise InputError(f"plot: expected a file that ends with .svg or .png, got {path}.")
    buffer = BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "privshard"}):
        figure.savefig(buffer, format=kind, dpi=130, metadata=metadata)
    make_folder(path.parent)
    write_whole(path, buffer.getvalue())
