"""Curves as PNG files: a share between 0 and 1 against a number, one line a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from privshard.report.svg import SETTINGS, new_figure

_MARKERS = "osD^vP*X"


def write_curves(
    path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], *, axis: str, value: str, logarithmic: bool
) -> None:
    """Draw `lines`, name -> points (x, y), into the file `path`, whole or not at all.

    axis, value: what x and y are. logarithmic: of x, which is then above 0. Points are marked, so that a line of one
    point shows too; markers tell lines apart where colours don't.
    """
    import matplotlib

    with matplotlib.rc_context({**SETTINGS, "text.color": "black", "figure.facecolor": "white"}):
        figure = new_figure(7.2, 3.4 + 0.16 * len(lines))
        axes = figure.add_subplot()
        for place, (name, points) in enumerate(lines.items()):
            x, y = zip(*sorted(points), strict=True)
            axes.plot(x, y, marker=_MARKERS[place % len(_MARKERS)], markersize=4, linewidth=1.2, label=name)
        if logarithmic:
            ticks = sorted({x for points in lines.values() for x, _ in points})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(axis)
        axes.set_ylabel(value)
        axes.grid(axis="y", linewidth=0.5, alpha=0.4)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8)
        part = path.with_suffix(".part.png")
        figure.savefig(part, dpi=150, metadata={"Software": None})
        part.rename(path)
