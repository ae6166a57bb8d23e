"""The page of sizes: a plot where accuracies are known, and every size in the table."""

from __future__ import annotations

from privshard.report.sizes_page import frontier_plot, sizes_page

SIZE = {
    "depths": [4], "components": 2, "parameters": 2_000_000, "stored": 1_000_000, "latency_ms": 3.5,
    "memory_bytes": 2**23, "accuracy": 0.875, "fits": True, "on_frontier": True,
}  # fmt: skip


def report(*sizes, **budget):
    limits = {"parameters": None, "latency_ms": None, "memory_bytes": None, **budget}
    data = {"path": "x.parquet", "split": "eval", "num_rows": 10}
    return {"workspace": "w", "device": "cpu", "budget": limits, "by": "latency_ms", "data": data,
            "sizes": list(sizes), "note": "Note."}  # fmt: skip


def test_the_table_has_every_size_with_its_verdict():
    over = {**SIZE, "depths": [12], "fits": False, "on_frontier": False}
    cheap = {**SIZE, "components": 1, "accuracy": 0.5, "on_frontier": False}
    page = sizes_page(report(SIZE, cheap, over, latency_ms=4.0))
    assert page.count("<svg") == 1
    assert [page.count(f">{word}<") for word in ("on the frontier", "fits", "over budget")] == [1, 1, 1]
    assert "<td>2</td><td>2.00</td><td>1.00</td><td>3.50</td><td>8.00</td><td>87.5 %</td>" in page
    assert "<dt>Budget: latency of one image, ms</dt><dd>4.00</dd>" in page
    assert "depth 4" in page


def test_without_accuracies_there_is_no_plot():
    page = sizes_page(report({**SIZE, "accuracy": None, "on_frontier": False}))
    assert "<svg" not in page
    assert "Budget:" not in page


def test_the_costliest_mark_stands_away_from_the_edge(monkeypatch):
    figures = []
    monkeypatch.setattr("privshard.report.sizes_page.inline_svg", lambda figure, **_: figures.append(figure) or "")
    frontier_plot([SIZE, {**SIZE, "latency_ms": 7.0}], by="latency_ms", limit=None)
    left, right = figures[0].axes[0].get_xlim()
    assert left == 0
    assert right > 1.05 * 7.0
