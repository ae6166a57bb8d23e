"""What privacy and removability cost in accuracy: one table that anyone can rebuild, in as many sittings as it takes.

    python -m jobs.benchmarks.accuracy --data FOLDER --weights FILE --out FOLDER --budget-s 300 --device cuda

Results are one JSON line a cell; run it again and it goes on with the next cell. Several may run at once with one --out
where they don't share cells (--sets, --kinds). `--report` only writes the tables and plots of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.benchmarks._accuracy_cells import SIZES, Cell, all_cells, headline
from jobs.benchmarks._accuracy_report import curves, markdown

RESULTS, TABLE = "accuracy.jsonl", "accuracy.md"


def main(given: Sequence[str] | None = None) -> int:
    """Run cells until the budget is used; 0 also where some are left, 1 where one failed."""
    arguments = _parser().parse_args(given)
    out: Path = arguments.out
    held = load_results(out / RESULTS)
    failed = 0
    if not arguments.report:
        cells = headline() if arguments.headline else all_cells(data=arguments.sets, seeds=arguments.seeds)
        kinds = arguments.kinds or [cell.kind for cell in cells]
        cells = [cell for cell in cells if cell.data in arguments.sets and cell.kind in kinds]
        failed = run_cells(cells, held, arguments)
        held = load_results(out / RESULTS)
    if held:
        results = [item for item in held.values() if "accuracy" in item]
        (out / TABLE).write_text(markdown(results) + "\n")
        print(markdown(results))
        for path in curves(results, out):
            print(path)
    return 1 if failed else 0


def run_cells(cells: Sequence[Cell], held: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> int:
    """Run what is missing, one line of JSON appended and flushed a cell; how many failed.

    A cell is begun where the budget leaves room for what it should take, by its work and the rate seen so far.
    """
    import torch

    from jobs.benchmarks._accuracy_run import Bench, run_cell

    started, rate = time.perf_counter(), None
    bench = Bench(
        arguments.data,
        str(arguments.weights),
        model=arguments.model,
        device=arguments.device,
        cache=arguments.cache,
        limit=arguments.limit,
        rows_at_once=arguments.rows,
        dtype=getattr(torch, arguments.dtype),
        compiled=arguments.compile,
    )
    missing = [cell for cell in cells if cell.key not in held]
    print(f"{len(missing)} of {len(cells)} cells to run", file=sys.stderr)
    failed = 0
    for cell in missing:
        left = arguments.budget_s - (time.perf_counter() - started)
        if left <= 0:
            break
        if rate is not None and cell.work * rate > left:
            continue
        try:
            result = run_cell(cell, bench)
            rate = max(result["train_s"] / cell.work, 0.5 * (rate or 0.0))
        except Exception as error:
            traceback.print_exc()
            result, failed = {**cell.to_json(), "error": f"{type(error).__name__}: {error}"}, failed + 1
        append(
            arguments.out / RESULTS, {"key": cell.key, **result, "when": datetime.now(UTC).isoformat("T", "seconds")}
        )
        print(json.dumps({k: v for k, v in result.items() if k != "removed"}), file=sys.stderr, flush=True)
    return failed


def append(path: Path, result: dict[str, Any]) -> None:
    """Add one whole line: written at once and synced, so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(result, allow_nan=False) + "\n").encode()
    with open(path, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def load_results(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> its result, failures left out so that they run again; a line that was cut short is passed over."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            item = json.loads(line)
        except ValueError:
            continue
        if "error" not in item:
            found[item["key"]] = item
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Accuracy by data set, method, shards and epsilon.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--weights", required=True, help="safetensors file of the model's weights")
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="timm's name of the model")
    parser.add_argument("--out", type=Path, default=Path("accuracy"), help="folder for results, table and plots")
    parser.add_argument("--cache", type=Path, default=None, help="folder to keep encodings in between runs")
    parser.add_argument("--budget-s", type=float, default=300.0, help="seconds after which no cell is begun")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--sets", nargs="+", default=list(SIZES), help="data sets, by the names of their files")
    kinds = sorted({cell.kind for cell in all_cells()})
    parser.add_argument(
        "--kinds", nargs="+", choices=kinds, help="methods with their blocks: only cells of these kinds"
    )
    parser.add_argument("--rows", type=int, default=64, help="images, and examples of a step, at once, at least")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of private steps")
    parser.add_argument("--compile", action="store_true", help="compile the steps of tangent models")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the cells beyond the headline")
    parser.add_argument("--limit", type=int, default=None, help="use only so many rows of each split")
    parser.add_argument("--headline", action="store_true", help="only the cells that the README quotes")
    parser.add_argument("--report", action="store_true", help="only write the table and the plots of what is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
