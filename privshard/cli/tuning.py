"""The command `tune`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from privshard.cli.frame import Frame
from privshard.cli.options import DebugOption, JsonOption, OverridesOption


def tune(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="YAML file; without one, the embedded example.")
    ] = None,
    overrides: OverridesOption = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="KEY=V,V,…", help="Values to compare: --try training.lr=0.1,0.3; repeatable."),
    ] = None,
    folds: Annotated[int, typer.Option(metavar="K", help="Parts that the train subjects are cut into.")] = 3,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Compare settings of one recipe by cross-validation over train subjects. The choice is not private.

    For any setting of the optimization, before a training of that recipe: nothing is written, and rows that the data
    mark as test are left alone. To compare recipes or methods with each other, each at its own learning rate:
    `privshard sweep`.
    """

    def work(on_progress: Any) -> dict[str, Any]:
        from privshard import api
        from privshard.api.recipe import Recipe

        loaded = Recipe.load(recipe, overrides=overrides or ())
        return api.tune(loaded, grid=_grid(values) if values else None, folds=folds, on_progress=on_progress)

    from privshard.cli.render import tuned

    return Frame("tune", as_json=as_json, debug=debug).execute(work, show=tuned)


def _grid(given: Sequence[str]) -> dict[str, list[Any]]:
    """ "training.lr=0.1,0.3" -> {"training.lr": [0.1, 0.3]}, values as YAML reads them."""
    from privshard.api.recipe_yaml import override
    from privshard.core.errors import InputError

    found: dict[str, list[Any]] = {}
    for item in given:
        key, mark, values = item.partition("=")
        if not mark or not key or not values:
            raise InputError(f"--try: expected KEY=VALUE,VALUE, got {item!r}.")
        parsed = []
        for value in values.split(","):
            nested: Any = override({}, f"{key}={value}")
            for part in key.split("."):
                nested = nested[part]
            parsed.append(nested)
        found[key] = parsed
    return found
