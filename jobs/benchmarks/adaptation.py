"""The comparison of methods: accuracy, parameters, memory and time on several data sets, resumable and in bounded time.

    python -m jobs.benchmarks.adaptation --data /shared --out results --budget-s 540 --device cuda

--data names a folder with `data/NAME.parquet` and `weights/deit_tiny_patch16_224.safetensors`. Every set is one sweep
(`privshard sweep`): one grid of learning rates for all methods, chosen on train subjects; the test split is scored once
with the chosen rate, by every seed. One shard without differential privacy for all methods, five shards at epsilon 8
for some. Run it again to continue: each training is kept when it is done. --plan prints what it would cost. Methods are
compared with one of them, GIFT unless --against names another, by differences paired over seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.benchmarks._adaptation_report import differences, mean_over_sets, text
from jobs.benchmarks._machine import machine
from privshard.api import sweep
from privshard.api.recipe import Recipe
from privshard.api.recipe_methods import METHODS
from privshard.core.jobs import Progress

SETS = ("sign_language_digits", "flowers12", "omniglot_small", "cifar10")
PUBLIC = tuple(name for name in ("tangent", "gift", "head", "full", "lora", "bitfit", "prompts") if name in METHODS)
PRIVATE = tuple(name for name in ("tangent", "gift", "lora", "head") if name in METHODS)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FOLDS = 5


@dataclass(frozen=True)
class Counts:
    """Rows of one data set that take part, and its classes: public facts of public data."""

    train: int
    test: int
    classes: tuple[str, ...]

    @staticmethod
    def of(path: Path, *, limit: int) -> Counts:
        """From the columns `split` and `label` of a Parquet file."""
        table = pq.read_table(path, columns=["split", "label"])
        train = sum(split == "train" for split in table["split"].to_pylist())
        classes = sorted({str(label) for label in table["label"].to_pylist()}, key=lambda name: (len(name), name))
        return Counts(min(limit, train), min(limit, len(table) - train), tuple(classes))


def recipes(asked: argparse.Namespace, path: Path, counts: Counts) -> dict[str, Recipe]:
    """Name -> recipe: every public method, and the private ones as "METHOD, epsilon 8"."""
    data = {"path": str(path), "classes": list(counts.classes), "nominal_examples": counts.train}
    base: dict[str, Any] = {}
    if asked.model != "embedded":
        base = {"model": asked.model, "weights": str(asked.data / "weights" / f"{asked.model}.safetensors")}
    rate = min(1.0, asked.batch / counts.train)
    execution = {
        "device": asked.device,
        "dtype": asked.dtype,
        "micro_batch": asked.micro_batch,
        "threads": asked.threads,
    }
    common = {"data": data, "base": base, "execution": execution}
    adam = {"optimizer": "adam", "momentum": 0.9, "average_from": 0.5}
    found = {}
    for name in asked.methods:
        training = {**adam, "steps": asked.steps, "sample_rate": rate}
        found[name] = Recipe(**common, method={"name": name}, shards=1, privacy={"epsilon": None}, training=training)
    for name in asked.private_methods:
        training = {**adam, "steps": asked.private_steps, "sample_rate": asked.private_rate}
        found[f"{name}, epsilon 8"] = Recipe(
            **common, method={"name": name}, shards=5, privacy={"epsilon": 8.0}, training=training
        )
    return found


def cost(
    found: Mapping[str, Recipe], counts: Counts, *, rates: Sequence[float], seeds: int, tries: int
) -> dict[str, Any]:
    """How many trainings a set needs, and how many gradients of examples they compute."""
    gradients = 0.0
    for recipe in found.values():
        steps, rate = recipe.training.steps or 0, recipe.training.sample_rate or 0.0
        rows = counts.train * (seeds + len(rates) * tries * (FOLDS - 1) / FOLDS)
        gradients += steps * rate * rows
    return {"trainings": len(found) * (len(rates) * tries + seeds), "gradients": round(gradients)}


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run as much as the budget allows, write results.json and results.md, print the tables."""
    asked = _parser().parse_args(given)
    started = time.perf_counter()
    asked.out.mkdir(parents=True, exist_ok=True)
    results, plans = {}, {}
    for name in asked.sets:
        path = asked.data / "data" / f"{name}.parquet"
        counts = Counts.of(path, limit=asked.limit)
        found = recipes(asked, path, counts)
        plans[name] = cost(found, counts, rates=asked.rates, seeds=asked.seeds, tries=asked.tries)
        if asked.plan:
            continue
        left = None if asked.budget_s is None else asked.budget_s - (time.perf_counter() - started)
        results[name] = sweep(
            found,
            out=str(asked.out / f"{name}.jsonl"),
            rates=asked.rates,
            seeds=asked.seeds,
            tries=asked.tries,
            folds=FOLDS,
            limit=asked.limit,
            budget_s=left,
            on_progress=_told(name),
        )
    report = {
        "benchmark": "adaptation",
        "machine": machine("cpu" if asked.device == "auto" else asked.device),
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(asked).items()},
        "complete": bool(results) and all(result["complete"] for result in results.values()),
        "cost": plans,
        "sets": results,
        "mean": mean_over_sets(results),
        "differences": differences(results, against=asked.against),
        "wall_s": time.perf_counter() - started,
    }
    shown = text(report)
    print(shown)
    if not asked.plan:
        (asked.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
        (asked.out / "results.md").write_text(shown)
    return report


def _told(name: str):
    def tell(progress: Progress) -> None:
        print(f"{name}: {progress.done} of {progress.total} trainings", file=sys.stderr, flush=True)

    return tell


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, required=True, help="folder with data/ and weights/")
    found.add_argument("--out", type=Path, required=True, help="folder for the cells and the results")
    found.add_argument("--sets", nargs="+", default=list(SETS), help="data sets")
    found.add_argument("--methods", nargs="*", default=list(PUBLIC), choices=PUBLIC, help="one shard, no privacy")
    found.add_argument(
        "--private-methods", nargs="*", default=list(PRIVATE), choices=PRIVATE, help="five shards, epsilon 8"
    )
    found.add_argument("--against", default="gift", choices=PUBLIC, help="the method that the others are compared with")
    found.add_argument("--model", default="deit_tiny_patch16_224", help='timm\'s name, or "embedded"')
    found.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="one grid for all methods")
    found.add_argument("--seeds", type=int, default=3, help="trainings with the chosen rate")
    found.add_argument("--tries", type=int, default=1, help="trainings for each rate of the grid")
    found.add_argument("--steps", type=int, default=100, help="without privacy")
    found.add_argument("--batch", type=int, default=128, help="expected examples a step, without privacy")
    found.add_argument("--private-steps", type=int, default=60)
    found.add_argument("--private-rate", type=float, default=0.25, help="sampling rate at epsilon 8")
    found.add_argument("--limit", type=int, default=4000, help="at most so many train, and test, rows of a set")
    found.add_argument("--budget-s", type=float, help="begin no training after so many seconds")
    found.add_argument("--device", default="auto")
    found.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    found.add_argument("--micro-batch", type=int, default=256, help="examples computed at once")
    found.add_argument("--threads", type=int, default=8, help="threads that decode images")
    found.add_argument("--plan", action="store_true", help="only print what it would cost")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
