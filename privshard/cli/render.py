"""Readable summaries of the commands' results; numbers are fractions, never percentages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

_ID_LENGTH = 12
_HELD_OUT = "on held-out rows, not covered by the guarantee"


def train(result: dict[str, Any]) -> RenderableType:
    """What was trained and what it guarantees."""
    rows = [(item["shard"], _id(item["id"]), _epsilon(item["epsilon"]), item["delta"]) for item in result["components"]]
    return _page(
        f"Trained model {result['model']} on base {result['base']['name']} in {result['workspace']}",
        f"Method: {', '.join(f'{key} {value}' for key, value in result['method'].items())}",
        _table(("shard", "component", "epsilon", "delta"), rows),
        f"Metrics ({_HELD_OUT}): {_numbers(result['metrics'])}",
        f"Time: {_numbers(result['timing_s'], unit=' s')}",
        _statement(result["privacy"]["statement"]),
    )


def plan(result: dict[str, Any]) -> RenderableType:
    """What a training would do, before it does it."""
    privacy = result["privacy"]
    rows = [
        ("base", f"{result['base']['name']} ({_id(result['base']['digest'])})"),
        *((("method" if key == "name" else key), value) for key, value in result["method"].items()),
        ("shards", result["shards"]),
        *((key.replace("_", " "), value) for key, value in result["noise"].items()),
        ("epsilon of one training", _epsilon(privacy["epsilon"])),
        ("epsilon limit", _epsilon(privacy["epsilon_limit"])),
        ("planned retrains", privacy["planned_retrains"]),
        ("delta", privacy["delta"]),
        ("unit", privacy["unit"]),
        *((key.replace("_", " "), value) for key, value in result["cost"].items()),
    ]
    return _page(
        f"Plan of a training into {result['workspace']}; nothing was done",
        _table(("", "value"), rows),
        _statement(privacy["statement"]),
    )


def tuned(result: dict[str, Any]) -> RenderableType:
    """What was compared, the best first."""
    ranked = sorted(result["candidates"], key=lambda item: -item["accuracy"])
    rows = [(_settings(item["settings"]), item["accuracy"], item["standard_error"]) for item in ranked]
    return _page(
        f"Compared on {result['num_rows']} rows in {result['folds']} folds of subjects; best: "
        f"--set {_settings(result['best'], ' --set ')}",
        _table(("settings", "accuracy", "standard error"), rows),
        _statement(result["statement"]),
    )


def _settings(values: Mapping[str, Any], joint: str = " ") -> str:
    return joint.join(f"{key}={value}" for key, value in values.items())


def forget(result: dict[str, Any]) -> RenderableType:
    """What a removal did, or would do."""
    headings = {
        "done": "The subject was forgotten",
        "planned": "Plan of a removal; nothing was done",
        "unknown_subject": "The workspace holds nothing about this subject; nothing was done",
        "already_forgotten": "This subject was forgotten before; nothing was done",
    }
    rows = [(step["action"], _id(step["component"]), step["reason"]) for step in result["plan"]]
    done = result["status"] == "done"
    before, after = (result["metrics_before"], result["metrics_after"]) if done else (None, None)
    return _page(
        headings[result["status"]],
        _table(("action", "component", "reason"), rows) if rows else None,
        f"Model: {result['model_before'] or 'none'} -> {result['model_after'] or 'none'}" if done else None,
        f"Before ({_HELD_OUT}): {_numbers(before)}" if before else None,
        f"After: {_numbers(after)}" if after else None,
        _receipt(result["receipt"]),
        f"Time: {_number(result['elapsed_s'])} s",
    )


def budget(result: dict[str, Any]) -> RenderableType:
    """What every shard has spent, what is left of it, and the planner's answer."""
    headings = ("shard", "epsilon spent", "epsilon limit", "left", "retrains left", "releases")
    rows = [
        (
            item["shard"],
            _epsilon(item["epsilon_spent"]),
            _epsilon(item["epsilon_limit"], none="none"),
            _epsilon(item["epsilon_left"], none="none"),
            "any number" if item["retrains_left"] is None else item["retrains_left"],
            item["releases"],
        )
        for item in result["shards"]
    ]
    groups = [
        (item["examples"], _epsilon(item["epsilon_spent"]), _epsilon(item["epsilon_limit"]))
        for item in result["groups"]
    ]
    return _page(
        f"Privacy budget for one {result['unit']}, delta {_number(result['delta'])}, accountant {result['accountant']}",
        _table(headings, rows),
        _table(("a subject with examples", "epsilon spent", "at the limit"), groups) if groups else None,
        _what_if(result["what_if"]),
        _statement(result["statement"]),
    )


def _what_if(answer: dict[str, Any] | None) -> RenderableType | None:
    if answer is None:
        return None
    rows = [
        (
            item["shard"],
            item["retrains"],
            "none is enough" if item["noise_multiplier"] is None else item["noise_multiplier"],
            _epsilon(item["epsilon"], none="-"),
            "admitted" if item["admitted"] else "refused",
        )
        for item in answer["shards"]
    ]
    return _table(("what if: shard", "more retrainings", "noise multiplier", "epsilon then", ""), rows)


def influence(result: dict[str, Any]) -> RenderableType:
    """What each component does to the model."""
    headings = (
        "shard", "component", "weight distance", "accuracy without", "mean logit shift", "Shapley of accuracy"
    )  # fmt: skip
    rows = [
        (
            item["shard"],
            _id(item["id"]),
            item["weight_distance"],
            item["leave_one_out"]["accuracy"],
            item["leave_one_out"]["mean_logit_shift"],
            item["shapley_accuracy"],
        )
        for item in result["components"]
    ]
    return _page(
        f"Influence of {len(rows)} components ({_HELD_OUT})",
        _table(headings, rows),
        _edits(result["edits"]),
        result.get("note"),
        f"Report: {result['html']}" if result.get("html") else None,
    )


def _edits(edits: list[dict[str, Any]]) -> RenderableType | None:
    if not edits:
        return None
    rows = [
        (_id(item["id"]), item["leave_one_out"]["accuracy"], item["leave_one_out"]["mean_logit_shift"])
        for item in edits
    ]
    return _table(("edit", "accuracy without", "mean logit shift"), rows)


def predict(result: dict[str, Any]) -> RenderableType:
    """A label for every image."""
    rows = [(item["image"], item["label"], item["probability"]) for item in result["predictions"]]
    return _page(f"Predictions of model {result['model']}", _table(("image", "label", "probability"), rows))


def evaluate(result: dict[str, Any]) -> RenderableType:
    """How good the model is."""
    rows = [(key.replace("_", " "), value) for key, value in result["metrics"].items() if not _is_nested(value)]
    return _page(f"Model {result['model']} on its held-out rows", _table(("metric", "value"), rows), result["note"])


def verify(result: dict[str, Any]) -> RenderableType:
    """Every check, and the verdict."""
    rows = [("ok" if item["ok"] else "FAILED", item["name"], item["detail"]) for item in result["checks"]]
    failed = sum(not item["ok"] for item in result["checks"])
    verdict = "Verified" if result["ok"] else f"Verification failed: {failed} of {len(rows)} checks"
    return _page(verdict, _table(("", "check", "detail"), rows))


def imported(result: dict[str, Any]) -> RenderableType:
    """What went into the file."""
    skipped = len(result["skipped"])
    return _page(
        f"Wrote {result['out']}: {result['num_rows']} rows, {len(result['classes'])} classes, "
        f"{result['num_subjects'] or 'no'} named subjects",
        f"Classes: {', '.join(result['classes'])}",
        f"Files skipped because they are no images: {skipped}" if skipped else None,
    )


def _page(title: str, *parts: RenderableType | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    shown = [Text(part) if isinstance(part, str) else part for part in parts if part]
    return Group(Text(title, style="bold"), *shown)


def _statement(text: str) -> RenderableType:
    from rich.panel import Panel
    from rich.text import Text

    return Panel(Text(text), title="Privacy", title_align="left")


def _table(headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_number(cell)) for cell in row))
    return table


def _receipt(receipt: Any) -> str | None:
    if isinstance(receipt, Mapping):
        named = [f"{key} {receipt[key]}" for key in ("id", "guarantee") if receipt.get(key)]
        return f"Receipt: {', '.join(named)}" if named else None
    return f"Receipt: {receipt}" if receipt else None


def _numbers(values: Mapping[str, Any], unit: str = "") -> str:
    flat = {key: value for key, value in values.items() if not _is_nested(value)}
    return ", ".join(f"{key.replace('_', ' ')} {_number(value)}{unit}" for key, value in flat.items()) or "none"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return _numbers(value)
    return str(value)


def _epsilon(value: float | None, *, none: str = "unbounded") -> str:
    return none if value is None else f"{value:.4g}"


def _id(value: str | None) -> str:
    return "-" if value is None else value[:_ID_LENGTH]


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)
