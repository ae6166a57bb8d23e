"""The editing benchmark's results for people: areas with their intervals, curves, costs, and the plots."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.benchmarks._editing_data import Bench
from jobs.benchmarks._editing_methods import Problem, masked_editor, masks_of
from privshard.data.images import decode
from privshard.editing.front import Interval, area_interval, difference_interval
from privshard.editing.locator import Locator
from privshard.editing.places import Place
from privshard.report.edit_plots import before_after_plot, front_plot, mask_plot, pareto_plot

OURS = "locator"
SHOWN_KEEP = 0.1


def write_report(
    report: dict[str, Any],
    *,
    bench: Bench,
    locators: Mapping[str, Locator],
    places: Sequence[Place],
    out: Path,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """Add areas and comparisons, write report.json and report.md, and draw what there is; the whole report."""
    curves = {
        name.removeprefix("report "): part["value"]
        for name, part in report["parts"].items()
        if name.startswith("report ")
    }
    report["areas"] = {name: asdict(_area(curve, asked)) for name, curve in curves.items()}
    if OURS in curves:
        report["ours_minus"] = {
            name: asdict(_difference(curves[OURS], curve, asked)) for name, curve in curves.items() if name != OURS
        }
        best = max(report["areas"], key=lambda name: report["areas"][name]["value"])
        report["best"] = best
        report["best_minus"] = {
            name: asdict(_difference(curves[best], curve, asked)) for name, curve in curves.items() if name != best
        }
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(markdown(report, curves))
    _draw(report, curves, bench, locators, places, out, asked)
    return report


def markdown(report: Mapping[str, Any], curves: Mapping[str, Any]) -> str:
    """The report as a page."""
    data, model, here = report["data"], report["model"], report["machine"]
    lines = [
        "# Editing",
        "",
        f"{model['name']} ({model['digest'][:12]}), accuracy {model['accuracy_on_errors']:.4f} on the labelled "
        f"pictures; {data['num_groups_found']} error groups found, {len(data['reported'])} reported, "
        f"{len(data['tuned'])} others tuned on; {data['num_sensitive']} sensitive examples. Places: "
        f"{report['places']}.",
        f"{here['device']}, torch {here['torch']}, {here['date']}, seed {report['command']['seed']}. "
        + ("" if report["complete"] else "**Not complete.**"),
        "",
    ]
    if curves:
        lines += [
            "| editor | area (95 %) | locator minus it | largest minus it | success "
            "| by strength: generalization / locality | tuned |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
    order = sorted(curves, key=lambda name: -report["areas"][name]["value"])
    for name in order:
        curve = curves[name]
        ours, best = (report.get(key, {}).get(name) for key in ("ours_minus", "best_minus"))
        means = {key: np.mean(curve[key], axis=0) for key in ("success", "generalization", "locality")}
        pairs = zip(curve["strengths"], means["generalization"], means["locality"], strict=True)
        shown = "; ".join(f"{strength:g}: {first:.3f} / {second:.3f}" for strength, first, second in pairs)
        setting = ", ".join(f"{key} {value}" for key, value in curve["setting"].items())
        against = [_interval(minus) if minus else "" for minus in (ours, best)]
        cells = (name, _interval(report["areas"][name]), *against, f"{means['success'].mean():.3f}", shown, setting)
        lines.append(f"| {' | '.join(cells)} |")
    if "best" in report:
        lines += ["", f"Largest area: {report['best']}."]
    timing = report["parts"].get("timing", {}).get("value")
    if timing:
        lines += [
            "",
            f"An edit of {timing['steps']} steps takes {timing['edit_s']:.4f} s, full fine-tuning "
            f"{timing['fine_tuning_s']:.4f} s: a ratio of {timing['edit_over_fine_tuning']:.3f}. The locator has "
            f"{timing['locator_parameters']:,} parameters.",
            "",
            "| images | forward ms | locator ms | share of time | share of operations |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {name.removeprefix('batch ')} | {1e3 * item['forward_s']:.3f} | {1e3 * item['locator_s']:.3f} | "
            f"{item['share_of_time']:.4f} | {item['share_of_operations']:.4f} |"
            for name, item in timing["locator"].items()
        ]
    return "\n".join(lines) + "\n"


def _draw(
    report: Mapping[str, Any],
    curves: Mapping[str, Any],
    bench: Bench,
    locators: Mapping[str, Locator],
    places: Sequence[Place],
    out: Path,
    asked: argparse.Namespace,
) -> None:
    """fronts.png, mask.png, before_after.png, search.png: each where its part is done."""
    if curves:
        means = {
            name: np.stack([np.mean(curve["generalization"], axis=0), np.mean(curve["locality"], axis=0)], axis=1)
            for name, curve in curves.items()
        }
        title = f"{report['model']['name']}: means over {len(report['data']['reported'])} error groups"
        front_plot(out / "fronts.png", means, title=title)
    search = report["parts"].get("search", {}).get("value")
    if search:
        pareto_plot(out / "search.png", search["candidates"], chosen=search["places"])
    if OURS not in curves:
        return
    setting = curves[OURS]["setting"]
    group = bench.reported[0]
    shown = Problem(
        view=bench.base.view,
        images=bench.pixels(bench.errors, [g.rows[0] for g in bench.reported]),
        labels_B=torch.tensor([g.label for g in bench.reported], device=bench.device),
        places=tuple(places),
        unlabeled=bench.pixels(bench.sample, bench.unlabeled[:2]),
        steps=asked.steps,
        seed=asked.seed,
        chunk=asked.chunk,
        locators=locators,
    )
    kept = {kind: masks_of(shown, kind, setting, SHOWN_KEEP) for kind in (OURS, "gradient")}
    shares = {
        kind: {name: mask.mean(dim=1).tolist() for name, mask in by_name.items()} for kind, by_name in kept.items()
    }
    mask_plot(out / "mask.png", shares, title=f"Neurons kept at rho {SHOWN_KEEP:g}, {len(bench.reported)} edits")
    predict = masked_editor(OURS)(shown, setting, SHOWN_KEEP)[0]
    rows = group.rows[:12]
    after = predict(bench.pixels(bench.errors, rows)).tolist()
    pictures = [
        (decode(bench.errors.contents[row]), str(group.label), str(bench.errors.predictions_B[row]), str(said))
        for row, said in zip(rows, after, strict=True)
    ]
    before_after_plot(
        out / "before_after.png",
        pictures,
        title=f"One edit by the {OURS} at rho {SHOWN_KEEP:g}, learnt from the first image alone: before → after",
    )


def _points(curve: Mapping[str, Any]) -> np.ndarray:
    return np.stack([np.array(curve["generalization"]), np.array(curve["locality"])], axis=-1)


def _area(curve: Mapping[str, Any], asked: argparse.Namespace) -> Interval:
    return area_interval(_points(curve), draws=asked.draws, seed=asked.seed)


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], asked: argparse.Namespace) -> Interval:
    return difference_interval(_points(ours), _points(theirs), draws=asked.draws, seed=asked.seed)


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})"
