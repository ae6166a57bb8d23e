"""The size menu as a page: what `privshard sizes --html` shows of accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from privshard.report.html import render
from privshard.report.svg import ABOVE, BELOW, INK, MUTED, RULE, SETTINGS, inline_svg, new_figure
from privshard.report.wording import percent, plain

_COSTS = {
    "latency_ms": ("latency of one image, ms", 1.0),
    "parameters": ("parameters, millions", 1e6),
    "memory_bytes": ("memory, MB", 2.0**20),
}
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def sizes_page(report: Mapping[str, Any]) -> str:
    """A self-contained HTML page of `privshard sizes`.

    report: the JSON value of `privshard.api.decompose_use.sizes`. Test: tests/report/test_sizes_page.py.
    """
    from markupsafe import Markup

    sizes = report["sizes"]
    measured = any(size["accuracy"] is not None for size in sizes)
    return render(
        "sizes.html",
        title=f"Sizes of {report['workspace']}",
        report=report,
        plot=Markup(frontier_plot(sizes, by=report["by"], limit=report["budget"][report["by"]])) if measured else None,
        budget=[
            (_COSTS[name][0], plain(value / _COSTS[name][1]))
            for name, value in report["budget"].items()
            if value is not None
        ],
        rows=[_row(size) for size in sizes],
    )


def frontier_plot(sizes: Sequence[Mapping[str, Any]], *, by: str, limit: float | None) -> str:
    """Accuracy over cost: a mark for each number of components, filled where it fits, the frontier as a line."""
    import matplotlib

    label, unit = _COSTS[by]
    shown = [size for size in sizes if size["accuracy"] is not None]
    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(7.6, 4.0)
        axes = figure.add_subplot()
        kept = sorted((size for size in shown if size["on_frontier"]), key=lambda size: size[by])
        axes.plot(
            [size[by] / unit for size in kept],
            [size["accuracy"] for size in kept],
            color=BELOW, linewidth=1.6, drawstyle="steps-post", label="frontier", zorder=2,
        )  # fmt: skip
        for place, count in enumerate(sorted({size["components"] for size in shown})):
            for fits in (True, False):
                points = [size for size in shown if size["components"] == count and size["fits"] is fits]
                axes.plot(
                    [size[by] / unit for size in points],
                    [size["accuracy"] for size in points],
                    linewidth=0, marker=_MARKS[place % len(_MARKS)], markersize=5.5,
                    color=ABOVE if fits else MUTED, fillstyle="full" if fits else "none", zorder=3,
                    label=f"{count} component{'s' * (count > 1)}" if fits else None,
                )  # fmt: skip
        most = max((size[by] for size in shown), default=0)
        for size in kept:
            room = size[by] > 0.15 * most  # to the left, where no mark can be above the frontier
            axes.annotate(
                f"depth {size['depths'][0]}", (size[by] / unit, size["accuracy"]), xytext=(-5 if room else 3, 5),
                textcoords="offset points", ha="right" if room else "left", fontsize=7.5, color=INK, parse_math=False,
            )  # fmt: skip
        if limit is not None:
            axes.axvline(limit / unit, color=INK, linewidth=1.0, linestyle=(0, (3, 3)), label="budget")
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy")
        axes.margins(x=0.12, y=0.12)
        axes.set_xlim(left=0)  # ends the automatic limits, so the margins come before
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        return inline_svg(figure, name="frontier", description="Accuracy over cost of all sizes; the table has them.")


def _row(size: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "depth": ", ".join(str(depth) for depth in size["depths"]),
        "components": size["components"],
        "parameters": plain(size["parameters"] / 1e6),
        "stored": plain(size["stored"] / 1e6),
        "latency": plain(size["latency_ms"]),
        "memory": plain(size["memory_bytes"] / 2**20),
        "accuracy": percent(size["accuracy"]),
        "fits": size["fits"],
        "on_frontier": size["on_frontier"],
    }
