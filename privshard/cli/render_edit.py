"""Readable summaries of what `privshard edit` did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

_HEADINGS = {
    "edited": "Edited: {edit}",
    "already_right": "No edit: the model is already right",
    "not_learnt": "No edit: the steps did not make every image right; nothing was changed",
}


def applied(result: dict[str, Any]) -> RenderableType:
    """What an edit did, or why there is none."""
    lines = [_HEADINGS[result["status"]].format(edit=str(result["edit"])[:12])]
    lines += [
        f"  {item['image']}: {item['before']} -> {item['after']}, label {item['label']}" for item in result["images"]
    ]
    if result["status"] == "edited":
        cost = result["cost"]
        lines += [
            f"Success {_number(result['success'])}, locality {_number(result['locality'])} on "
            f"{result['num_sensitive']} sensitive example(s)",
            f"Cost: {cost['num_neurons']} neurons, {cost['num_weights']} weights, {cost['bytes']} bytes, "
            f"{cost['steps']} steps, {cost['learn_s']:.3g} s",
            f"Where: {result['places']}, by {result['editor']}, keeping {result['keep']:g}",
        ]
        lines += [
            f"Conflict: edit {item['edit'][:12]} lost {item['images_lost']} image(s)" for item in result["conflicts"]
        ]
        if result["model_after"]:
            lines += [f"Model: {result['model_before']} -> {result['model_after']}", str(result["statement"])]
    return _page(lines)


def reverted(result: dict[str, Any]) -> RenderableType:
    """Which edits went."""
    lines = [
        f"Reverted {len(result['reverted'])} edit(s): {', '.join(edit[:12] for edit in result['reverted']) or 'none'}"
    ]
    lines += [f"Left: {', '.join(edit[:12] for edit in result['left']) or 'none'}"]
    if result["model_after"]:
        lines += [f"Model: {result['model_before']} -> {result['model_after']}", str(result["statement"])]
    return _page(lines)


def exported(result: dict[str, Any]) -> RenderableType:
    """Where the edited weights are."""
    return _page([f"Wrote {result['out']}, with {len(result['edits'])} edit(s)"])


def trained(result: dict[str, Any]) -> RenderableType:
    """A new locator."""
    return _page(
        [
            f"Trained locator {result['locator'][:12]} on {result['num_images']} images: {result['file']}",
            f"It scores {result['places']} with {result['num_parameters']} parameters",
            result["statement"],
        ]
    )


def searched(result: dict[str, Any]) -> RenderableType:
    """Every candidate, the best first."""
    from rich.table import Table

    table = Table("places", "generalization", "locality", "success", "front", box=None, pad_edge=False)
    for item in sorted(result["candidates"], key=lambda item: -item["score"]):
        values = (_number(item[name]) for name in ("generalization", "locality", "success"))
        table.add_row(item["places"], *values, "yes" if item["on_front"] else "")
    from rich.console import Group

    heading = (
        f"Edit at {result['places']} ({len(result['groups'])} groups, {result['num_sensitive']} sensitive examples)"
    )
    return Group(_page([heading]), table, _page([f"Plot: {result['plot']}"] if result["plot"] else []))


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _page(lines: list[str]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(*map(Text, lines))
