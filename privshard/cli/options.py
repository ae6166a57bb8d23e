"""What several commands take, worded once."""

from __future__ import annotations

from typing import Annotated

import typer

WorkspaceArgument = Annotated[str, typer.Argument(metavar="WORKSPACE", help="Directory or URI of the workspace.")]
OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set privacy.epsilon=3.")
]
HtmlOption = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Also write a page to open.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and what libraries say.")]
