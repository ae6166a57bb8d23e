"""Readable summaries of what the commands around decompositions found; numbers are fractions, never percentages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from privshard.cli.render import _id, _number, _page, _table

if TYPE_CHECKING:
    from rich.console import RenderableType


def decompose(result: dict[str, Any]) -> RenderableType:
    """What was learnt, phase by phase, or what a fit leaves."""
    phases = [(item["components"], item["steps"], item["loss"], item["accuracy"]) for item in result["phases"]]
    basis, stacks = result["basis"], result["stacks"]
    left = [
        (prefix, name, residual[-1])
        for prefix, kinds in (result["residuals"] or {}).items()
        for name, residual in kinds.items()
    ]
    return _page(
        f"Decomposed {result['model']['name']} into {result['components']} components: {result['file']}",
        f"Digest {_id(result['digest'])}, {basis['polynomial']} from {basis['start']}, {basis['argument']} arguments",
        _table(
            ("stack", "depth", "condition number"),
            [(stack["name"], stack["depth"], stack["condition_number"]) for stack in stacks],
        ),
        _table(("components", "steps", "loss", "held-out accuracy"), phases) if phases else None,
        _table(("stack", "parameter", "relative residual"), left) if left else None,
        f"Time: {_number(result['timing_s']['total'])} s",
        result["statement"],
    )


def recompose(result: dict[str, Any]) -> RenderableType:
    """What was written."""
    depths = ", ".join(str(depth) for depth in result["depths"])
    usable = "Use it as base.weights in a recipe." if result["mode"] == "free" else "Load it with load_tied."
    return _page(
        f"Wrote {result['out']}: {result['model']['name']}, depth {depths}, {result['components']} components, "
        f"{result['mode']}",
        f"Digest {_id(result['digest'])}, {result['parameters']} parameters, {result['stored']} stored, "
        f"{_number(result['elapsed_s'])} s. {usable}",
        result["statement"],
    )


def analyse(result: dict[str, Any]) -> RenderableType:
    """R^2 of every stack and kind."""
    rows = []
    for stack in result["stacks"]:
        rows.append((stack["name"], stack["depth"], "all kinds", stack["r2"], stack["explained"]))
        rows += [("", "", kind["name"], kind["r2"], kind["explained"]) for kind in stack["kinds"]]
    return _page(
        f"Linear trend over depth of {result['model']} ({result['weights']})",
        _table(("stack", "depth", "parameters", "R²", "variance explained"), rows),
        result["note"],
        f"Plots: {result['html']}" if result.get("html") else None,
    )


def sizes(result: dict[str, Any]) -> RenderableType:
    """The menu."""
    rows = [
        (
            "*" if size["on_frontier"] else "",
            ", ".join(str(depth) for depth in size["depths"]),
            size["components"],
            size["parameters"],
            size["stored"],
            size["latency_ms"],
            round(size["memory_bytes"] / 2**20, 1),
            size["accuracy"],
            "yes" if size["fits"] else "no",
        )
        for size in result["sizes"]
    ]
    headings = ("", "depth", "components", "parameters", "stored tied", "latency, ms", "memory, MB", "accuracy", "fits")
    return _page(
        f"Sizes of {result['workspace']} on {result['device']}",
        _table(headings, rows),
        "* no other that fits is as accurate for less."
        if any(size["on_frontier"] for size in result["sizes"])
        else None,
        result["note"],
        f"Plot: {result['html']}" if result.get("html") else None,
    )
