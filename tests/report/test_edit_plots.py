"""Plots of edits: what stands in them."""

from __future__ import annotations

import re

from privshard.report.edit_plots import mask_plot, pareto_plot


def candidate(places: str, locality: float, generalization: float, *, on_front: bool = True):
    return {"places": places, "locality": locality, "generalization": generalization, "on_front": on_front}


def test_every_point_of_a_crowded_front_is_numbered_and_named_beside_the_plot(tmp_path):
    crowd = [candidate(f"attention:{block},ffn:{block}", 0.5 + 1e-3 * block, 0.5 - 1e-3 * block) for block in range(4)]
    pareto_plot(tmp_path / "p.svg", [*crowd, candidate("ffn:9", 0.1, 0.1, on_front=False)], chosen="attention:2,ffn:2")
    told = re.findall(r"<!--(.*?)-->", (tmp_path / "p.svg").read_text(), re.DOTALL)  # what is drawn as paths
    names = [line.strip() for text in told for line in text.splitlines() if "ffn" in line]
    assert names == [f"{at + 1}  ffn {at} + attention {at}" + (" (chosen)" if at == 2 else "") for at in range(4)]


def test_bars_and_dots_are_explained(tmp_path):
    mask_plot(tmp_path / "m.svg", {"gradient": {"blocks.8.mlp.fc1.weight": [0.1, 0.3]}}, title="Kept")
    text = (tmp_path / "m.svg").read_text()
    assert all(part in text for part in ("bars: means; dots: edits", "block 8", "gradient", "share of neurons kept"))
