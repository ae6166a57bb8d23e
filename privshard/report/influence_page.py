"""The influence page: what `privshard influence --html` shows of an influence report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from privshard.report.html import render
from privshard.report.plots import signed_bars, signed_heat_map
from privshard.report.wording import percent, plain, points, signed

MAX_BARS = 40
MAX_CLASSES = 30
MAX_COLUMNS = 40
HALF_A_PLACE = 0.0005


def influence_page(
    report: Mapping[str, Any], *, title: str = "Influence of the components", statement: str | None = None
) -> str:
    """A self-contained HTML page of an influence report: no scripts, no requests, readable in light and dark.

    report: the JSON value of `privshard.influence.report.influence_report`. statement: what the composition's privacy
    guarantee is, in words. Where there are many components or classes, plots show those with the strongest effects,
    and say so; the table has all components.

    Test: tests/report/test_influence_page.py.
    """
    components = report["components"]
    labels = component_labels(components)
    measured = bool(components) and report["composition"]["num_rows"] > 0
    classes = _strongest_classes(components) if measured else []
    return render(
        "influence.html",
        title=title,
        statement=statement,
        note=report["note"],
        facts=_facts(report),
        summary=_summary(components, labels) if measured else None,
        rows=[_row(item, label) for item, label in zip(components, labels, strict=True)],
        edits=[_edit_row(item) for item in report["edits"]],
        estimated=(report["shapley"]["accuracy"] or {}).get("method") == "antithetic_permutations",
        bars=_bars(components, labels) if measured else None,
        num_bars=min(MAX_BARS, len(components)),
        class_map=_class_map(components, labels, classes) if measured else None,
        class_table=_class_table(components, labels, classes),
        num_classes=len(components[0]["per_class"]) if components else 0,
        num_columns=min(MAX_COLUMNS, len(components)),
        conflict=_conflict(report["conflict"], components, labels) if len(components) > 1 else None,
        measured=measured,
    )


def component_labels(components: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short name for each component: its shard, and the beginning of its id where a shard has several."""
    shards = [item["shard"] for item in components]
    return [
        f"shard {item['shard']}" + (f" · {item['id'][:8]}" if shards.count(item["shard"]) > 1 else "")
        for item in components
    ]


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    whole = report["composition"]
    return [
        ("Accuracy of the composition", percent(whole["accuracy"])),
        ("Accuracy of the base alone", percent(whole["base_accuracy"])),
        ("Components", str(len(report["components"]))),
        ("Held-out rows", str(whole["num_rows"])),
    ]


def _summary(components: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """The two ends of leave-one-out, in a sentence or two."""
    changes = [item["leave_one_out"]["accuracy_change"] for item in components]
    if len(changes) == 1:
        return f"Without its only component the model is the base, and accuracy changes by {points(changes[0])} points."
    helping = sum(change < -HALF_A_PLACE for change in changes)
    harming = sum(change > HALF_A_PLACE for change in changes)
    counts = {"lowers": helping, "raises": harming, "doesn't change": len(changes) - helping - harming}
    verb, *others = [(what, count) for what, count in counts.items() if count]
    said = [f"{verb[0]} accuracy for {verb[1]}", *(f"{what} it for {count}" for what, count in others)]
    parts = [f"Of {len(changes)} components, leaving one out {', '.join(said)}."]
    if helping:
        least = min(range(len(changes)), key=changes.__getitem__)
        parts.append(f"Most is lost without {labels[least]} ({points(changes[least])} points).")
    if harming:
        most = max(range(len(changes)), key=changes.__getitem__)
        parts.append(f"Most is gained without {labels[most]} ({points(changes[most])} points).")
    return " ".join(parts)


def _row(item: Mapping[str, Any], label: str) -> dict[str, Any]:
    """One line of the table, in words."""
    left_out = item["leave_one_out"]
    interval = item["shapley_accuracy_interval"]
    return {
        "label": label,
        "id": item["id"],
        "weight": plain(item["weight"]),
        "weight_distance": plain(item["weight_distance"]),
        "accuracy": percent(left_out["accuracy"]),
        "change": points(left_out["accuracy_change"]),
        "shift": plain(left_out["mean_logit_shift"]),
        "shapley": points(item["shapley_accuracy"]),
        "interval": f"{points(interval[0])} to {points(interval[1])}" if interval else "",
        "shapley_logit": signed(item["shapley_logit"], digits=3),
    }


def _edit_row(item: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the edits' table, in words."""
    left_out = item["leave_one_out"]
    return {
        "id": item["id"],
        "accuracy": percent(left_out["accuracy"]),
        "change": points(left_out["accuracy_change"]),
        "shift": plain(left_out["mean_logit_shift"]),
    }


def _bars(components: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Any:
    """Leave-one-out accuracy changes, the greatest loss on top."""
    changes = [item["leave_one_out"]["accuracy_change"] for item in components]
    shown = sorted(range(len(changes)), key=lambda index: -abs(changes[index]))[:MAX_BARS]
    shown.sort(key=lambda index: changes[index])
    return _safe(
        signed_bars(
            [100 * changes[index] for index in shown],
            [labels[index] for index in shown],
            [points(changes[index]) for index in shown],
            name="change",
            axis="percentage points of accuracy, without the component minus with it",
            description="Bar plot of the accuracy change when a component is left out; the table has the numbers.",
        )
    )


def _strongest_classes(components: Sequence[Mapping[str, Any]]) -> list[int]:
    """The classes with the greatest effects of any component, in their own order."""
    count = len(components[0]["per_class"])
    effects = [max(abs(_change(item, index) or 0.0) for item in components) for index in range(count)]
    return sorted(sorted(range(count), key=lambda index: (-effects[index], index))[:MAX_CLASSES])


def _class_map(components: Sequence[Mapping[str, Any]], labels: Sequence[str], classes: Sequence[int]) -> Any:
    shown = components[:MAX_COLUMNS]
    changes = [[_change(item, index) for item in shown] for index in classes]
    limit = max((abs(value) for line in changes for value in line if value is not None), default=0.0)
    return _safe(
        signed_heat_map(
            changes,
            [components[0]["per_class"][index]["class"] for index in classes],
            labels[: len(shown)],
            [[points(value) for value in line] for line in changes],
            limit=limit,
            name="classes",
            description="Heat map of each class's accuracy change when a component is left out; numbers follow below.",
        )
    )


def _class_table(
    components: Sequence[Mapping[str, Any]], labels: Sequence[str], classes: Sequence[int]
) -> dict[str, Any]:
    """The numbers behind the heat map."""
    shown = components[:MAX_COLUMNS]
    return {
        "columns": list(labels[: len(shown)]),
        "gaps": any(_change(components[0], index) is None for index in classes),
        "rows": [
            {
                "class": components[0]["per_class"][index]["class"],
                "num_rows": components[0]["per_class"][index]["num_rows"],
                "accuracy": percent(components[0]["per_class"][index]["accuracy_with"]),
                "changes": [points(_change(item, index)) for item in shown],
            }
            for index in classes
        ],
    }


def _change(item: Mapping[str, Any], index: int) -> float | None:
    """Accuracy of a class without the component minus with it."""
    row = item["per_class"][index]
    return None if row["accuracy_with"] is None else row["accuracy_without"] - row["accuracy_with"]


def _conflict(conflict: Mapping[str, Any], components: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Any:
    label_of = {item["id"]: label for item, label in zip(components, labels, strict=True)}
    names = [label_of[name] for name in conflict["ids"][:MAX_COLUMNS]]
    cosine = [line[:MAX_COLUMNS] for line in conflict["cosine"][:MAX_COLUMNS]]
    return _safe(
        signed_heat_map(
            cosine,
            names,
            names,
            [[signed(value, digits=2) for value in line] for line in cosine],
            limit=1.0,
            name="conflict",
            description="Matrix of the cosines between components.",
        )
    )


def _safe(svg: str) -> Any:
    """SVG that this package drew: its texts are escaped already."""
    from markupsafe import Markup

    return Markup(svg)
