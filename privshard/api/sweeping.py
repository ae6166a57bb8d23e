"""`sweep`: one grid of learning rates for all recipes, several seeds, resumable; the test split is scored once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.api.cells import Cell, Cells
from privshard.api.comparable import refuse_augmentations
from privshard.api.recipe import Recipe
from privshard.core.digest import json_digest
from privshard.core.errors import InputError
from privshard.core.jobs import OnProgress, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from privshard.api.trial import Rows, Trial
    from privshard.models.base import Base

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""The grid of learning rates, the same for every method."""

NOTE = (
    "The rates were chosen by looking at train rows, for each seed at another fold of subjects, without differential "
    "privacy: the epsilon of a recipe does not cover that choice, and these accuracies are not private either. The "
    "test split was scored only with the chosen rates."
)


def sweep(
    recipes: Mapping[str, Recipe],
    *,
    out: str,
    rates: Sequence[float] = RATES,
    seeds: int = 3,
    tries: int | None = None,
    folds: int = 5,
    limit: int | None = None,
    budget_s: float | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Choose each recipe's learning rate on train subjects, then score the test split with it, once a seed.

    For every recipe, rate and seed s (the first `tries` of them; all by default): train on the train rows outside fold
    s (of `folds`, subjects by a public hash), score on that fold. The rate with the highest mean wins (the smaller, if
    tied); with it train on all train rows and score the test rows, for every seed. Everything happens in memory, by the
    functions that `train` uses, with randomness that the seeds fix; nothing is released and no workspace is touched.

    out: a file of JSON lines, one a training, written when it is done: run again, the sweep continues after the last
    one. Another sweep's file is refused. recipes: name -> recipe, all on the same data. limit: at most so many train,
    and test, rows. budget_s: stop before a training that would begin later than this; the result then has
    `complete: false`.

    Returns {rates, seeds, tries, folds, limit, complete, selection: {private, note}, rows: [{name, method, epsilon,
    shards, parameters, lr, validation: [{lr, accuracy}], accuracy, interval, accuracies, train_s, peak_bytes}], table}.
    parameters: trained beside the head. interval: 95 %, of the mean over seeds (Student's t), None for one seed.

    Test: tests/api/test_sweeping.py.
    """
    _check(recipes, rates=rates, seeds=seeds, folds=folds)
    tell, started = on_progress or (lambda _: None), time.perf_counter()
    tries = seeds if tries is None else tries
    if not 1 <= tries <= seeds:
        raise InputError(f"tries: expected 1 to the number of seeds, {seeds}, got {tries}.")
    asked = {"rates": list(rates), "seeds": seeds, "tries": tries, "folds": folds, "limit": limit}
    digest = json_digest({**asked, "recipes": {name: recipe.digest for name, recipe in recipes.items()}})
    total = len(recipes) * (tries * len(rates) + seeds)
    with Cells.open(Path(out), sweep=digest) as cells:
        rows: Rows | None = None
        held: dict[str, Any] = {}
        for name, recipe in recipes.items():
            if all(cells.find(name, "test", None, seed) for seed in range(seeds)):
                continue
            if _late(started, budget_s):
                break
            rows = rows or _rows(recipe, limit)
            trial = _trial(recipe, rows, held)
            cells.note(name, trial.num_parameters)
            _run(
                trial,
                name,
                cells,
                rates=rates,
                seeds=seeds,
                tries=tries,
                folds=folds,
                stop=lambda: _late(started, budget_s),
                told=lambda: tell(Progress("sweep", None, "sweep", len(cells), total)),
            )
        found = [_summary(name, recipe, cells, rates=rates, seeds=seeds) for name, recipe in recipes.items()]
    complete = all(item["accuracy"] is not None for item in found)
    return {**asked, "complete": complete, "selection": {"private": False, "note": NOTE}, "rows": found, "out": out,
            "table": markdown(found)}  # fmt: skip


def _run(
    trial: Trial,
    name: str,
    cells: Cells,
    *,
    rates: Sequence[float],
    seeds: int,
    tries: int,
    folds: int,
    stop: Callable[[], bool],
    told: Callable[[], None],
) -> None:
    """Every missing training of one recipe, in order, until `stop`."""
    import numpy as np

    train_B = np.flatnonzero(~trial.rows.test_B)
    test_B = np.flatnonzero(trial.rows.test_B)
    fold_B = trial.rows.fold_B(folds)
    for lr in rates:
        for seed in range(tries):
            inside = fold_B[train_B] == seed % folds
            if inside.all() or not inside.any():
                raise InputError(
                    f"folds: expected subjects on both sides of fold {seed % folds} of {folds}, got "
                    f"{int(inside.sum())} of {len(inside)} rows in it.",
                    remedy="Use fewer folds, or more subjects.",
                )
            if cells.find(name, "validation", lr, seed) is None:
                if stop():
                    return
                score = trial.run(lr=lr, seed=seed, train_B=train_B[~inside], score_B=train_B[inside])
                cells.add(Cell.of(name, "validation", lr, seed, score))
                told()
    lr = best_rate(cells, name, rates=rates, tries=tries)
    for seed in range(seeds):
        if cells.find(name, "test", None, seed) is None:
            if stop():
                return
            cells.add(Cell.of(name, "test", lr, seed, trial.run(lr=lr, seed=seed, train_B=train_B, score_B=test_B)))
            told()


def best_rate(cells: Cells, name: str, *, rates: Sequence[float], tries: int) -> float:
    """The rate with the highest mean validation accuracy over its trainings, the smallest of those."""
    means = {lr: _mean([cells.get(name, "validation", lr, seed).accuracy for seed in range(tries)]) for lr in rates}
    return min(means, key=lambda lr: (-means[lr], lr))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The result as a table."""
    lines = [
        "| recipe | method | shards | epsilon | parameters | lr | accuracy | 0.95 interval | peak MiB | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        interval = "-" if row["interval"] is None else "{:.4f} to {:.4f}".format(*row["interval"])
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        shown = [
            row["name"], row["method"], row["shards"], "none" if row["epsilon"] is None else f"{row['epsilon']:g}",
            "-" if row["parameters"] is None else f"{row['parameters']:,}",
            "-" if row["lr"] is None else f"{row['lr']:g}",
            "-" if row["accuracy"] is None else f"{row['accuracy']:.4f}", interval, peak,
            "-" if row["train_s"] is None else f"{row['train_s']:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(value) for value in shown) + " |")
    return "\n".join(lines) + "\n"


def _summary(name: str, recipe: Recipe, cells: Cells, *, rates: Sequence[float], seeds: int) -> dict[str, Any]:
    validation = []
    for lr in rates:
        found = [cell for seed in range(seeds) if (cell := cells.find(name, "validation", lr, seed))]
        if found:
            validation.append({"lr": lr, "accuracy": _mean([cell.accuracy for cell in found]), "num_seeds": len(found)})
    test = [cell for seed in range(seeds) if (cell := cells.find(name, "test", None, seed))]
    done = len(test) == seeds
    accuracies = [cell.accuracy for cell in test]
    peaks = [cell.peak_bytes for cell in test if cell.peak_bytes is not None]
    return {
        "name": name,
        "method": recipe.method.name,
        "epsilon": recipe.privacy.epsilon,
        "shards": recipe.shards,
        "parameters": cells.parameters(name),
        "lr": test[0].lr if test else None,
        "validation": validation,
        "accuracy": _mean(accuracies) if done else None,
        "interval": interval(accuracies) if done else None,
        "accuracies": accuracies,
        "train_s": _mean([cell.train_s for cell in test]) if test else None,
        "peak_bytes": max(peaks) if peaks else None,
    }


def interval(values: Sequence[float]) -> list[float] | None:
    """The 95 % interval of a mean, by Student's t, within 0 and 1; None of fewer than two values.

    >>> interval([0.5])
    >>> [round(end, 3) for end in interval([0.5, 0.6])]
    [0.0, 1.0]
    """
    half = half_width(values)
    if half is None:
        return None
    mean = _mean(values)
    return [max(0.0, mean - half), min(1.0, mean + half)]


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of a mean, by Student's t; None of fewer than two values.

    >>> half_width([0.5])
    >>> round(half_width([0.5, 0.6]), 3)
    0.635
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean, count = _mean(values), len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _late(started: float, budget_s: float | None) -> bool:
    return budget_s is not None and time.perf_counter() - started >= budget_s


def _rows(recipe: Recipe, limit: int | None) -> Rows:
    from privshard.api import constants
    from privshard.api.trial import Rows

    return Rows.of(constants.source_rows(recipe), limit=limit)


def _trial(recipe: Recipe, rows: Rows, held: dict[str, Any]) -> Trial:
    """The recipe made ready; images are decoded once for all recipes whose bases see them alike."""
    from privshard.api.trial import Trial, pixels_of

    def pixels(base: Base) -> Tensor:
        key = str(sorted((name, str(value)) for name, value in base.transform_config.items()))
        if key not in held:
            held.clear()
            held[key] = pixels_of(rows, base, threads=recipe.flags().threads)
        return held[key]

    return Trial.of(recipe, rows, pixels=pixels)


def _check(recipes: Mapping[str, Recipe], *, rates: Sequence[float], seeds: int, folds: int) -> None:
    if not recipes:
        raise InputError("sweep: expected at least one recipe, got none.")
    first, *others = recipes.items()
    for name, recipe in others:
        if recipe.data != first[1].data:
            raise InputError(
                f"sweep: expected recipes on the same data, but {name} and {first[0]} differ in their data section.",
                remedy="Sweep each data set by itself.",
            )
    for recipe in recipes.values():
        refuse_augmentations("sweep", recipe)
    if not rates or len(set(rates)) < len(rates) or not all(lr > 0 and math.isfinite(lr) for lr in rates):
        raise InputError(f"rates: expected different numbers above 0, got {list(rates)}.")
    if seeds < 1:
        raise InputError(f"seeds: expected 1 or more, got {seeds}.")
    if folds < 2:
        raise InputError(f"folds: expected 2 or more, got {folds}.")
