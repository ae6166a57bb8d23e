"""The plots of the decomposition benchmark: nothing lies over what is drawn."""

from __future__ import annotations

from itertools import product

from jobs.benchmarks._decomposition_cells import Settings
from jobs.benchmarks._decomposition_report import STARTS, _draw_downstream


def test_both_panels_share_one_legend_below_them():
    settings = Settings(added=(1, 1), depths=(2, 4))
    lines = [
        {"target": target, "start": start, "depth": depth, "components": 2 if start in ("free", "t0t1") else 0,
         "accuracy": 0.1 * place + 0.01 * depth}
        for (place, start), target, depth in product(enumerate(STARTS), ("a", "b"), settings.depths)
    ]  # fmt: skip
    figure = _draw_downstream(lines, settings)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(STARTS.values())
    assert all(axes.get_legend() is None for axes in figure.axes)
    assert legend.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)
