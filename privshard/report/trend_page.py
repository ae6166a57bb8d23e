"""The trend page: what `privshard analyse --html` shows of a model's blocks over depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from privshard.report.html import render
from privshard.report.svg import ABOVE, BELOW, INK, MUTED, RULE, SETTINGS, inline_svg, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4


def trend_page(report: Mapping[str, Any]) -> str:
    """A self-contained HTML page of `privshard analyse`: a plot of all kinds together and one of each, by stack.

    report: the JSON value of `privshard.api.decompose_use.analyse`. Test: tests/report/test_trend_page.py.
    """
    from markupsafe import Markup

    stacks = [
        {
            **stack,
            "telling": stack["r2"] is not None,
            "r2": fraction(stack["r2"]),
            "chance": fraction(stack["r2_by_chance"]),
            "explained": fraction(stack["explained"]),
            "overall": Markup(overall_plot(stack, name=f"overall{place}")),
            "each": Markup(kinds_plot(stack["kinds"], name=f"kinds{place}")),
            "rows": [(kind["name"], fraction(kind["r2"]), fraction(kind["explained"])) for kind in stack["kinds"]],
        }
        for place, stack in enumerate(report["stacks"])
    ]
    return render("trend.html", title=f"Blocks over depth: {report['model']}", report=report, stacks=stacks)


def overall_plot(stack: Mapping[str, Any], *, name: str) -> str:
    """The joint score of every block, with the line whose R² is reported."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(6.4, 2.9)
        axes = figure.add_subplot()
        _scores(axes, stack["scores"], size=6)
        axes.set_xlabel("block")
        axes.set_ylabel("score")
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        description = f"Score of each block of {stack['name']} over depth; R² {fraction(stack['r2'])}."
        return inline_svg(figure, name=name, description=description)


def kinds_plot(kinds: Sequence[Mapping[str, Any]], *, name: str) -> str:
    """Small plots, one a kind of parameter, each on its own scale."""
    import matplotlib

    rows = math.ceil(len(kinds) / COLUMNS)
    with matplotlib.rc_context({**SETTINGS, "axes.titlesize": 8.5, "font.size": 8.0}):
        figure = new_figure(8.8, 0.3 + 1.55 * rows)
        grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes, kind in zip(grid, kinds, strict=False):
            _scores(axes, kind["scores"], size=3)
            axes.set_title(f"{kind['name']}\nR² {fraction(kind['r2'])}", loc="left", parse_math=False)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.tick_params(length=0)
        for axes in grid[len(kinds) :]:
            axes.set_visible(False)
        return inline_svg(figure, name=name, description="The same for each kind of parameter; the table has R².")


def fraction(value: float | None) -> str:
    """Two decimals; a dash for nothing."""
    return "–" if value is None else f"{value:.2f}"


def _scores(axes: Axes, scores: Sequence[float], *, size: float) -> None:
    places = list(range(1, len(scores) + 1))
    mean_x, mean_y = sum(places) / len(places), sum(scores) / len(scores)
    spread = sum((x - mean_x) ** 2 for x in places)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(places, scores, strict=True)) / spread if spread else 0.0
    axes.axhline(0, color=MUTED, linewidth=0.6)
    axes.plot(places, [mean_y + slope * (x - mean_x) for x in places], color=BELOW, linewidth=1.4)
    axes.plot(places, scores, color=ABOVE, marker="o", markersize=size, linewidth=0)
    step = max(1, math.ceil(len(places) / 12))
    axes.set_xticks(places[::step] if size > 4 else [places[0], places[-1]])
    axes.tick_params(labelcolor=INK)
    axes.margins(x=0.06, y=0.12)
    if not any(scores):
        axes.set_ylim(-1, 1)
