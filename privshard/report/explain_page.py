"""The page of `privshard gift explain --html`: the maps, and how well they find objects."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from privshard.report.html import render

_SETS = (
    ("trained", "Trained generators"),
    ("untrained", "Untrained generators"),
    ("random", "Random maps"),
)


def explain_page(report: Mapping[str, Any], picture: bytes) -> str:
    """A self-contained HTML page: no scripts, no requests, readable in light and dark.

    report: the JSON value of `privshard.api.gift_explain.explain`. picture: the PNG of `map_grid`.
    Test: tests/report/test_explain_page.py.
    """
    method = report["method"]
    return render(
        "explain.html",
        title=f"What the clusters see: {report['base']['name']}",
        report=report,
        facts=(
            ("Generator", {"compact": "compact, W (I + φψ)", "paca": "PaCa"}[method["generator"]]),
            ("Rank", method["rank"]),
            ("Parameters", f"{report['num_parameters']:,}".replace(",", "\u202f")),
            ("Layers", f"{len(report['layers'])} × {', '.join(_kinds(report['layers']))}"),
        ),
        picture="data:image/png;base64," + base64.b64encode(picture).decode(),
        scores=_scores(report["localization"]),
        verdict=_verdict(report["localization"]),
    )


def _kinds(layers: list[str]) -> list[str]:
    return list(dict.fromkeys(name.split(".", 2)[2] for name in layers))


def _scores(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    return [
        {
            "name": words,
            "num": found[name]["num_generators"],
            **{key: _cell(found[name][key]) for key in ("pointing", "iou", "best_iou")},
        }
        for name, words in _SETS
    ]


def _cell(value: Mapping[str, float | None]) -> str:
    mean, deviation = value["mean"], value["deviation"]
    if mean is None:
        return "–"
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def _verdict(found: Mapping[str, Any] | None) -> str:
    """One sentence that says what the numbers do and don't show."""
    if found is None:
        return "No masks or boxes were given, so nothing here is measured: these are pictures."
    trained, untrained, random = (found[name]["iou"]["mean"] for name, _ in _SETS)
    if trained is None:
        return "One image alone can't tell how well a map that was chosen on others finds an object."
    above = "more than" if trained > random else "no more than"
    gain = trained - untrained
    margin = max(found[name]["iou"]["deviation"] or 0.0 for name in ("trained", "untrained"))
    if abs(gain) <= margin:
        learnt = (
            "within the spread of untrained generators: the pretrained network finds the object, not what was learnt"
        )
    else:
        place, effect = ("above", "better") if gain > 0 else ("below", "worse")
        learnt = f"{abs(gain):.3f} {place} untrained generators: training made the maps fit the objects {effect}"
    numbers = f"{trained:.3f} against {random:.3f}"
    return f"Trained maps overlap with the objects {above} random ones do ({numbers}), and are {learnt}."
