"""The commands of `privshard gift`: merge, unmerge, export, explain, plant."""

from __future__ import annotations

from typing import Annotated

import typer

from privshard.cli import render_gift as render
from privshard.cli.frame import Frame
from privshard.cli.options import DebugOption, HtmlOption, JsonOption, WorkspaceArgument

app = typer.Typer(
    help="What was learnt with method gift: as plain weights, as a small file, and as maps of images.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help="A workspace, or a generator file.")]
OutOption = Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The safetensors file to write.")]
ComponentOption = Annotated[
    str | None,
    typer.Option("--component", metavar="ID", help="One component of the workspace; its beginning is enough."),
]


@app.command()
def merge(
    source: SourceArgument,
    out: OutOption,
    into: Annotated[
        str | None, typer.Option("--into", metavar="FILE", help="The base's weights, where they lie elsewhere now.")
    ] = None,
    component: ComponentOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Fold what was learnt into plain timm weights."""
    from privshard.api import gift

    frame = Frame("gift merge", as_json=as_json, debug=debug)
    return frame.execute(lambda _: gift.merge(source, out=out, into=into, component=component), show=render.merge)


@app.command()
def unmerge(
    merged: Annotated[str, typer.Argument(metavar="MERGED", help="A file that gift merge wrote.")],
    source: Annotated[str, typer.Option("--from", metavar="SOURCE", help="What was merged: workspace or file.")],
    out: OutOption,
    base: Annotated[
        str | None, typer.Option("--base", metavar="FILE", help="The base's weights, where they lie elsewhere now.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Take what was merged out again, back to the base."""
    from privshard.api import gift

    frame = Frame("gift unmerge", as_json=as_json, debug=debug)
    return frame.execute(lambda _: gift.unmerge(merged, source=source, out=out, base=base), show=render.unmerge)


@app.command()
def export(
    workspace: WorkspaceArgument,
    out: OutOption,
    component: ComponentOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Write the generator of one component as a small file, which merge and explain take."""
    from privshard.api import gift

    frame = Frame("gift export", as_json=as_json, debug=debug)
    return frame.execute(lambda _: gift.export(workspace, out=out, component=component), show=render.export)


@app.command()
def explain(
    source: SourceArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files; the first four are drawn.")],
    png: Annotated[str | None, typer.Option("--png", metavar="FILE", help="Write the maps as one picture.")] = None,
    html: HtmlOption = None,
    masks: Annotated[
        str | None, typer.Option("--masks", metavar="FOLDER", help="Masks named like the images: bright is the object.")
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option("--boxes", metavar="FILE", help=r"JSON: image name -> list of \[left, top, right, bottom]."),
    ] = None,
    clusters: Annotated[
        int | None, typer.Option(metavar="K", help="How many clusters to draw, the strongest; 3 unless given.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="How many untrained generators to compare with.")] = 5,
    component: ComponentOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Show what the clusters see in images before and after training, and score it against masks or boxes."""
    from privshard.api import gift_explain

    frame = Frame("gift explain", as_json=as_json, debug=debug)
    return frame.execute(
        lambda _: gift_explain.explain(
            source,
            images,
            png=png,
            html=html,
            masks=masks,
            boxes=boxes,
            clusters=clusters,
            seeds=seeds,
            component=component,
        ),
        show=render.explain,
    )


@app.command()
def plant(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A new folder.")],
    num: Annotated[int, typer.Option(metavar="N", help="How many images.")] = 60,
    size: Annotated[int, typer.Option(metavar="PIXELS", help="Width and height.")] = 224,
    seed: Annotated[int, typer.Option(help="The images are a function of it.")] = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Write images with planted objects, their masks and boxes: something to measure maps on."""
    from privshard.api import gift_explain

    frame = Frame("gift plant", as_json=as_json, debug=debug)
    return frame.execute(lambda _: gift_explain.plant(folder, num=num, size=size, seed=seed), show=render.plant)
