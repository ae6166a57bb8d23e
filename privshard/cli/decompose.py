"""The commands around decompositions: decompose, recompose, analyse, sizes."""

from __future__ import annotations

from enum import StrEnum
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from privshard.cli import render_decompose as render
from privshard.cli.frame import Frame
from privshard.cli.options import DebugOption, HtmlOption, JsonOption
from privshard.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Mode(StrEnum):
    """What a recomposed model is."""

    free = "free"
    tied = "tied"


class Cost(StrEnum):
    """What the frontier of sizes weighs accuracy against."""

    latency = "latency"
    parameters = "parameters"
    memory = "memory"


class Rows(StrEnum):
    """Which rows accuracy is measured on."""

    eval = "eval"
    train = "train"
    all = "all"


_Decomposition = Annotated[
    str, typer.Argument(metavar="DECOMPOSITION", help="Folder that `decompose` made, or a decomposition's file.")
]


def add_to(app: typer.Typer) -> None:
    """Mount the commands."""
    for command in (decompose, recompose, analyse, sizes):
        app.command()(command)


def decompose(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="YAML file; without one, the embedded digits.")
    ] = None,
    workspace: Annotated[
        str, typer.Option("--workspace", "-w", help="Folder to decompose into.")
    ] = "./privshard-decomposition",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set basis.start=1.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Learn a transformer's components from public data, or fit them to given weights; run again to resume."""
    frame = Frame("decompose", as_json=as_json, debug=debug, resumes=True)

    def work(on_progress: Any) -> dict[str, Any]:
        from privshard.api.decompose_recipe import DecomposeRecipe

        loaded = DecomposeRecipe.load(recipe, overrides=overrides or ())
        return _api().decompose(loaded, workspace=workspace, on_progress=on_progress)

    return frame.execute(work, show=render.decompose)


def recompose(
    decomposition: _Decomposition,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The safetensors file to write.")],
    depth: Annotated[
        str | None, typer.Option("--depth", metavar="L", help="Blocks; for a Swin one number a stage: 2,2,4,2.")
    ] = None,
    components: Annotated[
        int | None, typer.Option("--components", metavar="K", help="Use the first K components; all unless given.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="free: a plain timm model, ready as base.weights; tied: shared components.")
    ] = Mode.free,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Write a model of another depth from the components, at once and without training."""
    frame = Frame("recompose", as_json=as_json, debug=debug)
    return frame.execute(
        lambda _: _api().recompose(
            decomposition, out=out, depth=_numbers("--depth", depth), components=components, mode=mode.value
        ),
        show=render.recompose,
    )


def analyse(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="timm name, or a file that `recompose` wrote.")],
    weights: Annotated[
        str, typer.Option("--weights", metavar="FILE", help="pretrained, random or a safetensors file.")
    ] = "pretrained",
    args: Annotated[
        list[str] | None, typer.Option("--arg", metavar="KEY=VALUE", help="An argument for timm.create_model.")
    ] = None,
    html: HtmlOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Show whether a transformer's blocks lie on a line over depth (for a Swin, stage by stage)."""
    frame = Frame("analyse", as_json=as_json, debug=debug)
    return frame.execute(
        lambda _: _api().analyse(model, weights=weights, args=_arguments(args or ()), html=html), show=render.analyse
    )


def sizes(
    decomposition: _Decomposition,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Parquet file to measure accuracy on; embedded: the digits."),
    ] = None,
    rows: Annotated[Rows, typer.Option("--rows", help="Which of its rows.")] = Rows.eval,
    depths: Annotated[
        str | None, typer.Option("--depths", metavar="L,L,…", help="Depths to try; all up to the trained one.")
    ] = None,
    components: Annotated[
        str | None, typer.Option("--components", metavar="K,K,…", help="Components to try; those after each phase.")
    ] = None,
    max_parameters: Annotated[int | None, typer.Option(metavar="N", help="The device's budget.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="The device's budget, one image.")] = None,
    max_memory_mb: Annotated[float | None, typer.Option(metavar="MB", help="The device's budget.")] = None,
    by: Annotated[Cost, typer.Option(help="The cost of the frontier.")] = Cost.latency,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    html: HtmlOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """List the sizes a decomposition can be recomposed to, what they cost on this machine, and how good they are."""
    frame = Frame("sizes", as_json=as_json, debug=debug)
    return frame.execute(
        lambda on_progress: _api().sizes(
            decomposition,
            data=data,
            split=rows.value,
            depths=_numbers("--depths", depths),
            components=_numbers("--components", components),
            max_parameters=max_parameters,
            max_latency_ms=max_latency_ms,
            max_memory_mb=max_memory_mb,
            by=by.value,
            device=device,
            html=html,
            on_progress=on_progress,
        ),
        show=render.sizes,
    )


def _api() -> ModuleType:
    from privshard import api

    return api


def _numbers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option}: expected whole numbers with commas between them, got {text!r}.") from None


def _arguments(given: Sequence[str]) -> dict[str, Any]:
    from privshard.api.recipe_yaml import override

    found: dict[str, Any] = {}
    for assignment in given:
        found = override(found, assignment, option="--arg")
    return found
