"""Readable summaries of what `privshard gift` did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def merge(result: dict[str, Any]) -> RenderableType:
    """What was merged into which base, and how to load it."""
    from rich.text import Text

    target = result["loads_into"]
    call = ", ".join(f"{name}={value!r}" for name, value in target["arguments"].items())
    sources = ", ".join(name[:12] for name in result["sources"])
    return Text(
        f"Merged {result['method']['name']} ({sources}) into base {_base(result)}: {result['num_changed']} of "
        f"{result['num_tensors']} tensors changed.\n"
        f"Wrote {result['out']}, which loads strictly into {target['callable']}({call}).\n"
        f"Largest difference of a logit from the unmerged model: {result['max_logit_difference']:.2g}"
    )


def unmerge(result: dict[str, Any]) -> RenderableType:
    """Whether the base came back bit for bit, and why, or why not."""
    from rich.text import Text

    bits = "bit for bit" if result["exact"] else f"each weight to within {result['bound']:.2g}"
    return Text(f"Wrote {result['out']}: base {_base(result)}, {bits}.\n{result['reason']}")


def export(result: dict[str, Any]) -> RenderableType:
    """What the file holds."""
    from rich.text import Text

    return Text(
        f"Wrote {result['out']}: the generator of component {result['component'][:12]} on base {_base(result)}, "
        f"{result['num_parameters']} parameters and {result['num_head_parameters']} of the head."
    )


def explain(result: dict[str, Any]) -> RenderableType:
    """Scores, and where the maps are."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = result["localization"]
    shown: list[RenderableType] = [
        Text(f"{len(result['images'])} image(s), {len(result['layers'])} layer(s), base {_base(result)}", style="bold")
    ]
    if found is not None:
        table = Table(box=box.SIMPLE)
        for heading in ("maps", "generators", "pointing game", "IoU, one map", "IoU, best map of each image"):
            table.add_column(heading)
        for name in ("trained", "untrained", "random"):
            cells = [_score(found[name][key]) for key in ("pointing", "iou", "best_iou")]
            table.add_row(name, str(found[name]["num_generators"]), *cells)
        shown += [table, Text(f"Objects cover {found['area']:.3f} of what the model sees.")]
    else:
        shown.append(Text("No masks or boxes were given, so nothing is measured."))
    shown += [Text(f"{words}: {result[key]}") for key, words in (("png", "Maps"), ("html", "Report")) if key in result]
    return Group(*shown)


def plant(result: dict[str, Any]) -> RenderableType:
    """What was written."""
    from rich.text import Text

    return Text(
        f"Wrote {result['num_images']} images of {result['size']} pixels to {result['folder']}: images, masks, "
        f"boxes.json and planted.parquet. Classes: {', '.join(result['classes'])}"
    )


def _base(result: dict[str, Any]) -> str:
    return f"{result['base']['name']} {result['base']['digest'][:12]}"


def _score(value: dict[str, float | None]) -> str:
    mean, deviation = value["mean"], value["deviation"]
    if mean is None:
        return "-"
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"
