"""The commands about runs: status, cancel, timeline."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from privshard.cli import render_runs
from privshard.cli.frame import Frame
from privshard.cli.options import DebugOption, HtmlOption, JsonOption, WorkspaceArgument

AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="The controller's cluster, where it is not the one the training was started with."),
]


def mount(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(status)
    app.command()(cancel)
    app.command()(timeline)


def status(
    workspace: WorkspaceArgument,
    address: AddressOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until the run is over.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Show how a training is doing: stage, shards, retries, open removals and their deadlines."""
    frame = Frame("status", as_json=as_json, debug=debug)
    return frame.execute(
        lambda tell: _api().status(workspace, address=address, follow=follow, on_progress=tell if follow else None),
        show=render_runs.status,
    )


def cancel(
    workspace: WorkspaceArgument, address: AddressOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> int:
    """End a detached training; what is committed stays, and `train` resumes."""
    frame = Frame("cancel", as_json=as_json, debug=debug)
    return frame.execute(lambda _: _api().cancel(workspace, address=address), show=render_runs.cancel)


def timeline(
    workspace: WorkspaceArgument,
    html: HtmlOption = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="FILE", help="Also write a Chrome trace (JSON).")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Show where and when every shard of the latest run was trained. Confidential: times tell about sizes."""
    frame = Frame("timeline", as_json=as_json, debug=debug)
    return frame.execute(lambda _: _api().timeline(workspace, html=html, trace=trace), show=render_runs.timeline)


def _api() -> Any:
    """`privshard.api`, imported when a command runs: --help needs none of it."""
    from privshard import api

    return api
