"""What the comparison of methods says: means over the sets, differences to one method, and both as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from privshard.api.sweeping import half_width, interval


def mean_over_sets(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every recipe that is done on all sets, the mean over sets of each seed's accuracy, and the interval of that
    mean over seeds; and the most parameters that it trains on any of them."""
    found = []
    for rows in _done(results):
        seeds = _by_seed(rows)
        found.append(
            {
                "name": rows[0]["name"],
                "accuracy": math.fsum(seeds) / len(seeds),
                "interval": interval(seeds),
                "parameters": max(row["parameters"] for row in rows),
            }
        )
    return found


def differences(results: Mapping[str, Mapping[str, Any]], *, against: str) -> list[dict[str, Any]]:
    """The mean over sets of method `against` minus that of every other under the same shards and epsilon.

    Paired: the difference is taken seed by seed, because one seed gives all recipes the same rows and starting head.
    half_width: half of its 95 % interval over seeds (Student's t), None of one seed. Recipes without a counterpart, or
    that are not done on all sets, are left out.
    """
    done = {(row["method"], row["shards"], row["epsilon"]): rows for rows in _done(results) for row in rows[:1]}
    found = []
    for (method, shards, epsilon), rows in done.items():
        mine = done.get((against, shards, epsilon))
        if mine is None or method == against:
            continue
        seeds = [a - b for a, b in zip(_by_seed(mine), _by_seed(rows), strict=True)]
        found.append(
            {
                "name": mine[0]["name"],
                "minus": rows[0]["name"],
                "difference": math.fsum(seeds) / len(seeds),
                "half_width": half_width(seeds),
            }
        )
    return found


def text(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown."""
    here = report["machine"]
    lines = [
        f"adaptation: {report['arguments']['model']} on {here['device']}, torch {here['torch']}, {here['date']}",
        "",
    ]
    for name, plan in report["cost"].items():
        lines.append(f"{name}: {plan['trainings']} trainings, {plan['gradients']:,} gradients of examples")
    for name, result in report["sets"].items():
        lines += ["", f"## {name}", "", result["table"]]
    if report["mean"]:
        lines += [
            "## Mean over the sets",
            "",
            "| recipe | parameters | accuracy | 0.95 interval |",
            "| --- | --- | --- | --- |",
        ]
    for row in report["mean"]:
        shown = "-" if row["interval"] is None else "{:.4f} to {:.4f}".format(*row["interval"])
        lines.append(f"| {row['name']} | {row['parameters']:,} | {row['accuracy']:.4f} | {shown} |")
    if report["differences"]:
        lines += ["", "Differences of these means, paired over seeds, with half the 0.95 interval:", ""]
        lines += ["| recipe | minus | difference |", "| --- | --- | --- |"]
    for row in report["differences"]:
        half = "" if row["half_width"] is None else f" ± {row['half_width']:.4f}"
        lines.append(f"| {row['name']} | {row['minus']} | {row['difference']:+.4f}{half} |")
    if not report["complete"]:
        lines += ["", "Not complete: run it again to continue."]
    return "\n".join(lines) + "\n"


def _done(results: Mapping[str, Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Recipe by recipe, its row of every set, where all of them are done."""
    per_set = [{row["name"]: row for row in result["rows"]} for result in results.values()]
    of_all = [[rows[name] for rows in per_set] for name in (per_set[0] if per_set else ())]
    return [rows for rows in of_all if all(row["accuracy"] is not None for row in rows)]


def _by_seed(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The mean over sets, for each seed."""
    return [math.fsum(values) / len(rows) for values in zip(*(row["accuracies"] for row in rows), strict=True)]
