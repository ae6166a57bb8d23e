"""The trend page shows every stack and kind, and says where there is nothing to see."""

from __future__ import annotations

import re

from privshard.report.trend_page import trend_page

KIND = {"name": "norm1.weight", "r2": 0.875, "explained": 0.5, "scores": [-1.0, 0.25, 1.0]}
REPORT = {
    "model": "<vit>",
    "weights": "random",
    "stacks": [
        {"name": "layers.0.blocks", "depth": 3, "r2": 0.75, "explained": 0.625, "scores": [-1.0, 0.0, 1.0],
         "r2_by_chance": 0.5, "kinds": [KIND, {**KIND, "name": "attn.QKᵀ", "r2": None, "explained": None}]},
        {"name": "layers.1.blocks", "depth": 2, "r2": None, "explained": 1.0, "scores": [-1.0, 1.0],
         "r2_by_chance": None, "kinds": [{**KIND, "r2": None, "scores": [-1.0, 1.0]}]},
    ],
    "note": "A note.",
}  # fmt: skip


def test_it_has_plots_and_numbers_of_every_stack():
    page = trend_page(REPORT)
    assert page.count("<svg") == 2  # of the stack of three blocks alone
    assert "2 block(s), or blocks that do not differ" in page
    assert "R² 0.75; blocks in random order have 0.50" in page
    assert re.search(r"attn\.QKᵀ</th><td>–</td><td>–</td>", page)
    assert "norm1.weight</th><td>0.88</td><td>0.50</td>" in page
    assert "&lt;vit&gt;" in page
    assert "<vit>" not in page
    assert len(set(re.findall(r'\bid="([^"]+)"', page))) == len(re.findall(r'\bid="([^"]+)"', page))


def test_the_same_report_gives_the_same_page():
    assert trend_page(REPORT) == trend_page(REPORT)
