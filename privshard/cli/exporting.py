"""The command `privshard export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from privshard.cli.frame import Frame
from privshard.cli.options import DebugOption, JsonOption, WorkspaceArgument

if TYPE_CHECKING:
    from rich.console import RenderableType


def export(
    workspace: WorkspaceArgument,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The .pt2 file to write.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Write the current model as one file that runs without privshard."""
    from privshard import api

    frame = Frame("export", as_json=as_json, debug=debug)
    return frame.execute(lambda _: api.export(workspace, out=out), show=_shown)


def _shown(result: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    images = " x ".join(str(part) for part in result["input"])
    return Group(
        Text(f"Wrote model {result['model']} to {result['out']}: images ({images}) to {len(result['classes'])} logits"),
        Text(result["statement"]),
        Text(result["note"]),
    )
