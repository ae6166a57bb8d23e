"""Reproduce the claims about decomposed transformers at a small scale, cell by cell, in sittings of a few minutes.

    python -m jobs.benchmarks.decomposition --data FOLDER --out FOLDER --budget-s 540

The folder of the data holds cifar10.parquet, tiny_imagenet.parquet, sign_language_digits.parquet and flowers12.parquet.
Every finished cell is a line of results.jsonl, written whole; the same command goes on where the last one stopped, the
headline claims with three seeds first. Figures are held-out accuracies at 32 pixels.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.benchmarks._decomposition_cells import LONGER, SAME, Bench, Cell, Dataset, Settings
from privshard.core.errors import InputError
from privshard.store.disk import write_whole

FLIPPED = {"cifar10": True, "tiny_imagenet": True, "sign_language_digits": False, "flowers12": True, "digits": False}
TINY = Settings(
    size=16, patch=8, width=24, heads=2, depth=4, added=(1, 1, 2), depths=(2, 4), steps=6, batch=32,
    teacher_steps=2, down_steps=3, down_batch=32, dtype="float32",
)  # fmt: skip
IMAGES_PER_S = {"components": 30_000.0, "plain": 35_000.0, "downstream": 10_000.0, "teacher": 20_000.0}
"""What one H200 is expected to do with 12 blocks (a guess); what was measured counts as soon as there are results."""


def cells(
    settings: Settings, seeds: Sequence[int], *, pretraining: Sequence[str], targets: Sequence[str]
) -> list[Cell]:
    """All cells, the most important first: headline claims of every seed, then the comparisons of the first seed."""
    main, counts = pretraining[0], np.cumsum(settings.added).tolist()
    full, deepest, few = counts[-1], settings.depth, counts[-3] if len(counts) > 2 else counts[0]
    found: list[Cell] = []
    for seed in seeds:
        found += [
            Cell(main, "phased", deepest, full, seed),
            Cell(main, "plain", deepest, 0, seed),
            Cell(main, "at_once", deepest, full, seed),
            Cell(main, "tied", deepest, few, seed),
        ]
        for target in targets:
            for depth in sorted(settings.depths, key=lambda depth: (depth < 4, depth)):
                found += [Cell(main, "free", depth, full, seed, target), Cell(main, "random", depth, 0, seed, target)]
    sizes = {"phased": full, "plain": 0, "at_once": full, "tied": few}
    for seed in seeds:
        found += [Cell(main, f"{s}@{change}", deepest, sizes[s], seed) for s in _AGAIN for change in _AGAIN[s]]
    seed = seeds[0]
    for target in targets:
        for depth in settings.depths:
            found += [
                Cell(main, "every_other", depth, 0, seed, target),
                Cell(main, "t0t1", depth, 2, seed, target),
                *(Cell(main, "free", depth, count, seed, target) for count in counts[:-1]),
                *(Cell(main, "tied", depth, count, seed, target) for count in counts),
            ]
    found += [Cell(main, f"phased:{basis}", deepest, full, seed) for basis in _bases()]
    found += [Cell(main, f"{s}@{change}", deepest, sizes[s], seed) for s in _CHANGES for change in _CHANGES[s]]
    for depth in settings.depths[:-1]:
        for start in ("distilled", "scratch"):
            found.append(Cell(main, start, depth, 0, seed))
            found += [Cell(main, start, depth, 0, seed, target) for target in targets]
    for other in pretraining[1:]:
        found += [
            Cell(other, "phased", deepest, full, seed),
            Cell(other, "plain", deepest, 0, seed),
            Cell(other, "at_once", deepest, full, seed),
        ]
    return list(dict.fromkeys(found))


_AGAIN = {"phased": (LONGER,), "plain": ("steps=2", SAME), "at_once": (SAME,), "tied": (LONGER,)}
"""The headline claims with twice the steps: every seed."""

_CHANGES = {
    "phased": (
        "growing", "growing+warmup=4", "growing+steps=2", "refined", "lr=2", "lr=0.5", "growing+lr=2", "growing+lr=0.5",
    ),
    "plain": ("warmup=4", "lr=2", "lr=0.5"),
    "at_once": ("lr=0.3", "lr=0.1"),
    "tied": ("warmup=4", "growing"),
}  # fmt: skip
"""What is tried beside the settings, a pretraining at a time."""


def _bases() -> list[str]:
    """Other polynomials and starts, the last one as the paper's formula reads."""
    return ["legendre:0:symmetric", "taylor:0:symmetric", "fourier:0:unit", "chebyshev:0:nodes", "chebyshev:1:unit"]


def run(
    todo: Sequence[Cell],
    bench: Bench,
    *,
    results: Path,
    budget_s: float,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Do cells in order, but for those that would not fit into what is left of the budget; all results so far."""
    begun, lines = clock(), read_results(results, bench.settings)
    done = {line["cell"] for line in lines}
    for cell in todo:
        if cell.name in done:
            continue
        left, needed = budget_s - (clock() - begun), estimate_s(cell, bench.settings, lines)
        if needed > left:
            say(f"{cell.name} needs about {needed:.0f} s of the {max(left, 0):.0f} s left: not begun.")
            continue
        started = clock()
        figures = bench.run(cell)
        line = {"cell": cell.name, **asdict(cell), **figures, "seconds": clock() - started}
        lines.append({**line, "settings": bench.settings.digest, "device": bench.device})
        write_whole(results, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode())
        say(f"{cell.name}: {figures['accuracy']:.4f} in {line['seconds']:.1f} s")
    return lines


def read_results(path: Path, settings: Settings) -> list[dict[str, Any]]:
    """The lines so far; InputError where they were made with other settings."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    others = {line["settings"] for line in lines} - {settings.digest}
    if others:
        raise InputError(
            f"{path}: expected results of the settings {settings.digest}, got {', '.join(sorted(others))}."
        )
    return lines


def estimate_s(cell: Cell, settings: Settings, lines: Sequence[dict[str, Any]]) -> float:
    """How long a cell will take, by those of its kind so far, else by the expected throughput; with reserve."""
    kind, blocks = _kind(cell.target, cell.start), _blocks(cell.start, cell.depth)
    measured = [
        line["seconds"] / _blocks(line["start"], line["depth"])
        for line in lines
        if _kind(line["target"], line["start"]) == kind
    ]
    if measured:
        return 1.2 * float(np.median(measured)) * blocks  # the first of a kind compiles, and may train the teacher
    images = settings.down_steps * settings.down_batch if cell.target else settings.steps * settings.batch
    first = not lines and cell.start == "phased"  # it trains the teacher too
    teacher_s = settings.teacher_steps * settings.batch / IMAGES_PER_S["teacher"] if first else 0.0
    return 1.2 * images * blocks / settings.depth / IMAGES_PER_S[kind] + teacher_s + 5.0


def load_dataset(name: str, *, folder: Path | None, cached: Path, size: int) -> Dataset:
    """A dataset at `size` pixels, decoded once; "digits" are scikit-learn's, which need no folder."""
    path = cached / f"{name}_{size}.npz"
    if not path.exists():
        images, labels, held_out = _decode(name, folder=folder, size=size)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=images, labels=labels, held_out=held_out)
    with np.load(path) as arrays:
        images, labels, held_out = arrays["images"], arrays["labels"], arrays["held_out"]
    classes, index = np.unique(labels, return_inverse=True)
    return Dataset(
        images, index, np.flatnonzero(~held_out), np.flatnonzero(held_out), len(classes), FLIPPED.get(name, False)
    )


def _decode(name: str, *, folder: Path | None, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from PIL.Image import Resampling

    from privshard.data.example import example_rows
    from privshard.data.images import decode
    from privshard.data.prefetch import ordered_map
    from privshard.data.reader import read_rows

    if name != "digits" and folder is None:
        raise InputError(f"--data: expected the folder that holds {name}.parquet, got none.")
    rows = list(example_rows() if name == "digits" or folder is None else read_rows(folder / f"{name}.parquet"))

    def pixels(image: bytes) -> np.ndarray:
        small = decode(image).resize((size, size), Resampling.BICUBIC)
        return np.asarray(small).transpose(2, 0, 1)

    images = np.stack(list(ordered_map(pixels, [row.image for row in rows], num_workers=8)))
    held_out = [row.split == "eval" if row.split else index % 10 == 0 for index, row in enumerate(rows)]
    return images, np.array([row.label for row in rows]), np.array(held_out)


def _blocks(start: str, depth: int) -> float:
    """What a training's time is about in proportion to: its blocks, and its steps where a cell changes them."""
    factor = re.search("@steps=(.+)", start)
    return max(depth, 2) * (float(factor[1]) if factor else 1.0)


def _kind(target: str, start: str) -> str:
    if target:
        return "downstream"
    return "components" if re.split("[:@]", start)[0] in ("phased", "at_once", "tied", "t0t1") else "plain"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, go on, write the report; print where it is."""
    from jobs.benchmarks._decomposition_report import write_report

    parser = argparse.ArgumentParser(prog="python -m jobs.benchmarks.decomposition", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of Parquet files; without one, scikit-learn's digits")
    parser.add_argument("--out", type=Path, required=True, help="folder for results, models, table and plots")
    parser.add_argument("--budget-s", type=float, default=540.0, help="begin no cell that would not end within this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="steps of a pretraining, instead of the default")
    parser.add_argument("--compile", action="store_true", help="compile the blocks, in every training, and the teacher")
    parser.add_argument("--tiny", action="store_true", help="a form that ends in seconds on a CPU and shows nothing")
    parser.add_argument("--only", metavar="PATTERN", help="only cells whose names match, as --plan prints them")
    parser.add_argument("--plan", action="store_true", help="only list the cells with their estimated seconds")
    options = parser.parse_args(arguments)
    settings = TINY if options.tiny else Settings()
    settings = settings if options.steps is None else replace(settings, steps=options.steps)
    own = options.data is None
    todo = cells(
        settings,
        options.seeds,
        pretraining=["digits"] if own else ["cifar10", "tiny_imagenet"],
        targets=["digits"] if own else ["sign_language_digits", "flowers12"],
    )
    if options.only:
        todo = [cell for cell in todo if re.search(options.only, cell.name)]
        if not todo:
            parser.error(f"--only {options.only}: expected a pattern that some cell's name matches; --plan lists them.")
    results = options.out / "results.jsonl"
    if options.plan:
        lines = read_results(results, settings)
        left = [(cell, estimate_s(cell, settings, lines)) for cell in todo]
        left = [(cell, needed) for cell, needed in left if cell.name not in {line["cell"] for line in lines}]
        print("\n".join(f"{needed:7.1f} s  {cell.name}" for cell, needed in left))
        print(f"{sum(needed for _, needed in left):7.1f} s  for {len(left)} cells")
        return 0

    @cache
    def dataset(name: str) -> Dataset:
        return load_dataset(name, folder=options.data, cached=options.out / "cache", size=settings.size)

    if options.device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
    models = options.out / "models"
    bench = Bench(settings, models, dataset=dataset, device=options.device, compile_models=options.compile)
    lines = run(
        todo,
        bench,
        results=results,
        budget_s=options.budget_s,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    names = {cell.name for cell in todo}
    done = sum(line["cell"] in names for line in lines)
    paths = write_report(lines, settings, folder=options.out, done=done, total=len(todo))
    print(json.dumps({"done": done, "cells": len(todo), "files": [str(path) for path in paths]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
