"""Plots as inline SVG: signed bars and signed heat maps. Blue is positive, orange negative, numbers say the same.

Plots are drawn without pyplot, so nothing here has state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from privshard.report.svg import ABOVE, BELOW, MUTED, RULE, SETTINGS, inline_svg, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_LENGTH = 22
STRONGEST = 0.72
MAX_TEXT_COLUMNS = 14


def signed_bars(
    values: Sequence[float], labels: Sequence[str], texts: Sequence[str], *, name: str, axis: str, description: str
) -> str:
    """Horizontal bars around zero, the first on top, each with its text at its end."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(7.2, 0.75 + 0.3 * len(values))
        axes = figure.add_subplot()
        places = range(len(values))
        axes.barh(places, values, height=0.62, color=[ABOVE if value > 0 else BELOW for value in values])
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for place, value, text in zip(places, values, texts, strict=True):
            axes.annotate(
                text, (value, place), xytext=(-4 if value < 0 else 4, 0), textcoords="offset points",
                ha="right" if value < 0 else "left", va="center", parse_math=False,
            )  # fmt: skip
        axes.set_yticks(places, [_short(label) for label in labels], parse_math=False)
        axes.set_ylim(len(values) - 0.45, -0.55)
        axes.margins(x=0.16)
        if not any(values):
            axes.set_xlim(-1, 1)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_xlabel(axis)
        return inline_svg(figure, name=name, description=description)


def signed_heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    *,
    limit: float,
    name: str,
    description: str,
) -> str:
    """A cell for every value: the stronger its colour, the further from zero; zero is the page's own colour.

    values: None where there is nothing to show. limit: the magnitude of the strongest colour. texts: written into the
    cells while there is room for them.
    """
    import matplotlib

    with matplotlib.rc_context({**SETTINGS, "axes.spines.left": False, "axes.spines.bottom": False}):
        wide = 0.62 if len(columns) <= MAX_TEXT_COLUMNS else max(0.2, 8.7 / len(columns))
        label_width = 0.3 + 0.075 * max(len(_short(label)) for label in rows)
        turned = max(len(_short(label)) for label in columns) * 0.085 > wide
        figure = new_figure(label_width + wide * len(columns), (1.2 if turned else 0.45) + 0.31 * len(rows))
        axes = figure.add_subplot()
        _cells(axes, values, limit)
        if len(columns) <= MAX_TEXT_COLUMNS:
            for row, line in enumerate(texts):
                for column, text in enumerate(line):
                    axes.text(column, row, text, ha="center", va="center", fontsize=8, parse_math=False)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.tick_top()
        rotation = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(range(len(columns)), [_short(label) for label in columns], parse_math=False, **rotation)
        axes.set_yticks(range(len(rows)), [_short(label) for label in rows], parse_math=False)
        axes.tick_params(length=0)
        return inline_svg(figure, name=name, description=description)


def _cells(axes: Axes, values: Sequence[Sequence[float | None]], limit: float) -> None:
    """All cells, with gaps between them; a missing value is a dotted outline."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    known, missing, fills, colours = [], [], [], []
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            box = Rectangle((column - 0.475, row - 0.465), 0.95, 0.93)
            (missing if value is None else known).append(box)
            if value:
                fills.append(box)
                strength = STRONGEST * min(1.0, abs(value) / limit)
                colours.append(to_rgba(ABOVE if value > 0 else BELOW, strength))
    dots = {"linewidths": 0.9, "linestyles": [(0, (1, 2))]}
    axes.add_collection(PatchCollection(known, facecolors="none", edgecolors=RULE, linewidths=0.6))
    axes.add_collection(PatchCollection(missing, facecolors="none", edgecolors=MUTED, **dots))
    axes.add_collection(PatchCollection(fills, facecolors=colours, linewidths=0))


def _short(label: str) -> str:
    """The label, or its beginning and its end: long names often differ in their last characters."""
    return label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 9]}…{label[-8:]}"
