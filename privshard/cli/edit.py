"""`privshard edit`: parse, call `privshard.api`, print."""

from __future__ import annotations

from types import ModuleType
from typing import Annotated

import typer

from privshard.cli import render_edit
from privshard.cli.frame import Frame
from privshard.cli.options import DebugOption, JsonOption

app = typer.Typer(
    name="edit",
    help="Change a few weights where a model is wrong, and take such edits out again.",
    no_args_is_help=True,
)


def api() -> ModuleType:
    """`privshard.api`, imported when a command runs: --help needs none of it."""
    from privshard import api

    return api


Target = Annotated[str, typer.Argument(metavar="WORKSPACE", help="A workspace, or with --model a plain model file.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="timm's name of the plain model in the file.")
]
PlacesOption = Annotated[
    str | None, typer.Option("--places", metavar="P", help="Where, such as ffn:8-10,attention:9; blocks count from 0.")
]
SensitiveOption = Annotated[
    str | None, typer.Option("--sensitive", metavar="PATH", help="Labelled pictures on which locality is measured.")
]


@app.command()
def apply(
    target: Target,
    images: Annotated[list[str], typer.Option("--image", "-i", metavar="FILE", help="What the model is wrong about.")],
    labels: Annotated[list[str], typer.Option("--label", "-l", help="Its class; one for every image.")],
    subjects: Annotated[
        list[str] | None, typer.Option("--subject", "-s", help="Whom it is about; one for every image.")
    ] = None,
    editor: Annotated[
        str | None,
        typer.Option("--editor", metavar="E", help="heads (the default), gradient, locator or rank-one."),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option("--keep", metavar="RHO", help="The share of heads (default 1) or neurons (0.25) that may change."),
    ] = None,
    locator: Annotated[
        str | None,
        typer.Option("--locator", metavar="F", help="For the editor locator: a locator's file or digest."),
    ] = None,
    places: PlacesOption = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    steps: Annotated[int, typer.Option("--steps", help="At most so many steps.")] = 100,
    unlabeled: Annotated[
        str | None, typer.Option("--unlabeled", metavar="PATH", help="For the editor rank-one: images in general.")
    ] = None,
    sensitive: SensitiveOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Make images right by changing a few weights; several images give one edit.

    By default heads of late attention blocks change, the editor with the largest area in the benchmark; --locator,
    --editor or feed-forward --places choose otherwise.
    """

    return Frame("edit apply", as_json=as_json, debug=debug).execute(
        lambda on_progress: api().edit_apply(
            target,
            images=images,
            labels=labels,
            subjects=subjects or (),
            editor=editor,
            keep=keep,
            locator=locator,
            places=places,
            lr=lr,
            steps=steps,
            unlabeled=unlabeled,
            sensitive_data=sensitive,
            model=model,
            on_progress=on_progress,
        ),
        show=render_edit.applied,
    )


@app.command()
def revert(
    target: Annotated[str, typer.Argument(metavar="WORKSPACE", help="A workspace, or a plain model file.")],
    edits: Annotated[
        list[str] | None, typer.Option("--edit", "-e", metavar="ID", help="Which edit; may be repeated.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All edits.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Take edits out again; the model is what it was without them, bit for bit."""

    return Frame("edit revert", as_json=as_json, debug=debug).execute(
        lambda _: api().edit_revert(target, edits=edits or (), everything=everything), show=render_edit.reverted
    )


@app.command()
def export(
    target: Annotated[str, typer.Argument(metavar="FILE", help="A plain model file with edits beside it.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="timm's name of the model.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The safetensors file to write.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Write a plain model's weights with its edits added."""

    return Frame("edit export", as_json=as_json, debug=debug).execute(
        lambda _: api().edit_export(target, model=model, out=out), show=render_edit.exported
    )


@app.command(name="train-locator")
def train_locator(
    target: Target,
    images: Annotated[
        str | None, typer.Option("--images", metavar="PATH", help="A folder of images; else a workspace's own rows.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FILE", help="For a plain model's locator.")] = None,
    places: PlacesOption = None,
    episodes: Annotated[int, typer.Option("--episodes", help="How many pairs of images.")] = 4000,
    batch: Annotated[int, typer.Option("--batch", help="Episodes at once.")] = 64,
    fit_steps: Annotated[int, typer.Option("--fit-steps", help="Steps of fitting the hypernetwork.")] = 2000,
    depth: Annotated[int, typer.Option("--depth", help="Blocks of the hypernetwork.")] = 2,
    seed: Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")] = 0,
    model: ModelOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Meta-train, on unlabeled images, what says where to edit.

    No edit needs it: the default editor was ahead of the locator in the benchmark. It is for `apply --locator`.
    """
    from privshard.editing.training import LocatorOptions

    frame = Frame("edit train-locator", as_json=as_json, debug=debug, resumes=True)
    return frame.execute(
        lambda on_progress: api().edit_train_locator(
            target,
            images=images,
            out=out,
            places=places,
            options=LocatorOptions(episodes=episodes, batch=batch, fit_steps=fit_steps, depth=depth, seed=seed),
            model=model,
            on_progress=on_progress,
        ),
        show=render_edit.trained,
    )


@app.command()
def search(
    target: Target,
    data: Annotated[
        str | None, typer.Option("--data", metavar="PATH", help="Labelled pictures; else a workspace's held-out rows.")
    ] = None,
    sensitive: SensitiveOption = None,
    keep: Annotated[float, typer.Option("--keep", metavar="RHO", help="The share of neurons that may change.")] = 0.25,
    steps: Annotated[int, typer.Option("--steps", help="At most so many steps an edit.")] = 50,
    least: Annotated[int, typer.Option("--least", help="Images in an error group, at least.")] = 3,
    groups: Annotated[int, typer.Option("--groups", help="Error groups, at most.")] = 8,
    blocks: Annotated[int, typer.Option("--blocks", help="Consecutive blocks tried together.")] = 3,
    margin: Annotated[float, typer.Option("--margin", help="Sensitive: the two best classes are closer.")] = 0.05,
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="The Pareto plot, .svg or .png.")] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Search greedily for the blocks and kinds where edits generalize and stay local."""

    return Frame("edit search", as_json=as_json, debug=debug).execute(
        lambda on_progress: api().edit_search(
            target,
            data=data,
            sensitive_data=sensitive,
            keep=keep,
            steps=steps,
            least=least,
            num_groups=groups,
            group=blocks,
            margin=margin,
            plot=plot,
            model=model,
            on_progress=on_progress,
        ),
        show=render_edit.searched,
    )
