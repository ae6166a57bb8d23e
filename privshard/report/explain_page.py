"""The page of `privshard gift explain --html`: the maps, and how well they find objects."""

from __future__ import annotations

import base64
import math
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
    numbers = f"{trained:.3f} against {random:.3f}"
    gain, margin = trained - untrained, _margin(found["trained"], found["untrained"])
    if margin is None:
        learnt = "There are too few generators to tell whether training did that: more seeds would."
    elif abs(gain) <= margin:
        learnt = (
            f"Their difference to untrained generators, {gain:+.3f}, is within what generators vary by "
            f"(± {margin:.3f}): no effect of training is shown."
        )
    else:
        place, effect = ("above", "better") if gain > 0 else ("below", "worse")
        learnt = (
            f"They are {abs(gain):.3f} {place} untrained generators, more than those vary by (± {margin:.3f}): "
            f"training made the maps fit these objects {effect}."
        )
    return f"Trained maps overlap with the objects {above} random ones do ({numbers}). {learnt}"


def _margin(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Half the 95 % interval of the difference of two means over generators, by Student's t with a pooled deviation;
    None where no deviation is known."""
    from scipy.stats import t

    known = [(item["num_generators"], item["iou"]["deviation"]) for item in (one, other)]
    freedom = sum(num - 1 for num, deviation in known if deviation is not None)
    if freedom < 1:
        return None
    variance = sum((num - 1) * deviation**2 for num, deviation in known if deviation is not None) / freedom
    return float(t.ppf(0.975, freedom)) * math.sqrt(variance * sum(1 / num for num, _ in known))
