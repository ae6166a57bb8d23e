"""The command `sweep`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privshard.cli.frame import Frame
from privshard.cli.options import DebugOption, JsonOption
from privshard.core.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from privshard.api.recipe import Recipe
    from privshard.core.jobs import OnProgress


def sweep(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="YAML files, all on the same data.")],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="JSON lines, one a training; a sweep continues from it.")
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME", help="Sweep every recipe with this method, at its defaults; repeat."),
    ] = None,
    rates: Annotated[str | None, typer.Option(metavar="LR,LR,...", help="The grid, the same for all.")] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Trainings with the chosen rate.")] = 3,
    tries: Annotated[
        int | None, typer.Option(metavar="N", help="Trainings for each rate; as many unless given.")
    ] = None,
    folds: Annotated[int, typer.Option(metavar="N", help="Parts of the train subjects; a seed holds one out.")] = 5,
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most N train and N test rows.")] = None,
    budget_s: Annotated[
        float | None, typer.Option("--budget-s", metavar="S", help="Begin no training after S seconds.")
    ] = None,
    table: Annotated[str | None, typer.Option("--table", metavar="FILE", help="Also write the Markdown table.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key in every recipe.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Compare recipes or methods: choose learning rates on train subjects, then score the test split once.

    One grid of rates for all, several seeds, a table, and a file from which it continues. The choice is not private. To
    compare other settings of one recipe, and leave the test split alone: `privshard tune`.
    """

    def work(on_progress: OnProgress) -> dict[str, Any]:
        from privshard import api

        result = api.sweep(
            _named(recipes, methods or [], overrides or []),
            out=out,
            **({} if rates is None else {"rates": _rates(rates)}),
            seeds=seeds,
            tries=tries,
            folds=folds,
            limit=limit,
            budget_s=budget_s,
            on_progress=on_progress,
        )
        if table is not None:
            Path(table).write_text(result["table"], encoding="utf-8")
        return result

    return Frame("sweep", as_json=as_json, debug=debug, resumes=True).execute(work, show=_shown)


def _named(paths: list[str], methods: list[str], overrides: list[str]) -> dict[str, Recipe]:
    """Name -> recipe: the file's name, with the method's where methods are given."""
    from privshard.api.recipe import Recipe

    found: dict[str, Recipe] = {}
    for path in paths:
        for method in methods or [None]:
            name = Path(path).stem if method is None else f"{Path(path).stem}/{method}"
            if name in found:
                raise InputError(f"sweep: expected recipes of different names, got {name} twice.")
            chosen = [] if method is None else [f"method={{name: {method}}}"]
            found[name] = Recipe.load(path, overrides=[*chosen, *overrides])
    return found


def _rates(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"rates: expected numbers with commas between them, got {text!r}.") from None


def _shown(result: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    state = "Swept" if result["complete"] else "Stopped before the end; run it again to continue"
    title = f"{state}: {len(result['rows'])} recipes, {len(result['rates'])} rates, {result['seeds']} seeds"
    return Group(Text(title, style="bold"), Text(result["table"]), Text(result["selection"]["note"]))
