"""One cell of the accuracy table: train its shards by the product's own functions and defaults, compose, score."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.benchmarks._accuracy_cells import SIZES, SUBJECTS, Cell
from jobs.benchmarks._accuracy_data import Rows, class_names, encoded, load_rows
from privshard.api.constants import optimization
from privshard.api.methods import make_method
from privshard.api.recipe import Recipe
from privshard.core.method import Constants, Method, origin
from privshard.core.model import BaseSpec
from privshard.models.base import Base, load_base
from privshard.privacy.plan import make_plan
from privshard.privacy.stream import insecure_key
from privshard.training.shard import train_shard

DELTA = 1e-5
REMOVED = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8)


@dataclass
class Bench:
    """What cells share: rows, bases and encodings, each made once."""

    data: Path
    weights: str
    model: str = "deit_tiny_patch16_224"
    device: str = "cpu"
    cache: Path | None = None
    limit: int | None = None
    rows_at_once: int = 64
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    _rows: dict[str, dict[str, Rows]] = field(default_factory=dict)
    _bases: dict[int, Base] = field(default_factory=dict)
    _encoded: dict[tuple[str, str, int], tuple[Method, Constants, Constants]] = field(default_factory=dict)

    def at_once(self, method: Method) -> int:
        """How many examples of a step, and of scoring, are computed at once."""
        return max(64 * method.batch_scale, self.rows_at_once)

    def rows(self, name: str) -> dict[str, Rows]:
        """The rows of a data set."""
        if name not in self._rows:
            self._rows[name] = load_rows(self.data / f"{name}.parquet", limit=self.limit)
        return self._rows[name]

    def prepared(self, cell: Cell) -> tuple[Method, Constants, Constants]:
        """The cell's method, and the constants of train and test rows; only the last used ones are kept in memory."""
        key = (cell.data, cell.method, cell.blocks)
        if key not in self._encoded:
            self._encoded.clear()
            rows = self.rows(cell.data)
            classes = len(class_names(rows))
            if classes not in self._bases:
                spec = BaseSpec(self.model, classes, weights=self.weights)
                self._bases[classes] = load_base(spec)
            base = self._bases[classes]
            method = make_method(recipe_of(cell).method_spec(), base.view.to(self.device))
            name = f"{cell.data}-{cell.method}-{cell.blocks}"
            parts = [
                encoded(
                    method,
                    base,
                    rows[split],
                    name=f"{name}-{split}",
                    folder=self.cache,
                    device=self.device,
                    batch=max(128, self.rows_at_once),
                )
                for split in ("train", "eval")
            ]
            self._encoded[key] = (method, parts[0], parts[1])
        return self._encoded[key]


def recipe_of(cell: Cell) -> Recipe:
    """The recipe whose documented defaults the cell is measured with."""
    options = {"blocks": cell.blocks} if cell.method in ("tangent", "full") else {}
    return Recipe(
        data={"path": f"{cell.data}.parquet", "nominal_examples": SIZES.get(cell.data)},
        method={"name": cell.method, **options},
        shards=cell.shards,
        privacy={"epsilon": cell.epsilon, "delta": DELTA, "unit": cell.unit, "planned_retrains": 0},
    )


def run_cell(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Accuracy on the test rows: of all components composed, of each alone, and with shards removed.

    Every setting is the product's default for the cell's recipe; nothing was chosen on the rows it is scored on. Noise
    and sampling are seeded, so the components are not private: it is their accuracy that is measured.
    """
    started = time.perf_counter()
    recipe, rows = recipe_of(cell), bench.rows(cell.data)
    classes = {name: index for index, name in enumerate(class_names(rows))}
    method, train, test = bench.prepared(cell)
    encode_s = time.perf_counter() - started
    train_labels, test_labels = (
        torch.tensor([classes[label] for label in rows[split].labels], device=bench.device)
        for split in ("train", "eval")
    )
    units = (SUBJECTS if cell.unit == "subject" else SIZES).get(cell.data, len(train_labels))
    chosen = optimization(recipe, units_per_shard=units / cell.shards, num_classes=len(classes))
    plan = make_plan(
        recipe.privacy_params(),
        sample_rate=chosen.sample_rate,
        steps=chosen.steps,
        nominal_units_per_shard=units / cell.shards,
        mean_releases=int(chosen.center and method.radius is not None),
    )
    dtype = bench.dtype if plan.private else torch.float32
    train, test = _kept(method, train, dtype), _kept(method, test, dtype)
    displacements = []
    for shard in range(cell.shards):
        at = rows["train"].of_shard(shard, num_shards=cell.shards, seed=cell.seed).to(bench.device)
        names = rows["train"].ids if cell.unit == "example" else rows["train"].subjects
        trained = train_shard(
            method,
            {name: tensor[at] for name, tensor in train.items()} if len(at) else None,
            labels_B=train_labels[at],
            unit_of_row=[names[int(row)] for row in at],
            plan=plan,
            params=chosen.settled(plan, num_shards=cell.shards),
            root_key=insecure_key(cell.seed, shard=shard, attempt=0),
            max_rows=bench.at_once(method),
            dtype=bench.dtype,
            compiled=bench.compiled and hasattr(method, "compiled_after"),
        )
        displacements.append({name: tensor.to(bench.device) for name, tensor in trained.tensors.items()})
    train_s = time.perf_counter() - started - encode_s
    score = partial(_logits, method, test, batch=bench.at_once(method), dtype=dtype)
    logits = torch.stack([score(item) for item in displacements])
    found: dict[str, Any] = {"accuracy": _accuracy(score(_average(displacements)), test_labels)}
    if cell.shards > 1:
        found["ensemble"] = _accuracy(logits.mean(0), test_labels)
        found["alone"] = sum(_accuracy(each, test_labels) for each in logits) / cell.shards
        found["removed"] = {
            str(share): _accuracy(score(_average(displacements[int(share * cell.shards) :])), test_labels)
            for share in REMOVED
        }
    base = origin(method, device=bench.device)
    if base:
        found["base"] = _accuracy(score(base), test_labels)
    return {
        **cell.to_json(),
        **found,
        "noise_multiplier": plan.noise_multiplier,
        "num_test": len(test_labels),
        "encode_s": encode_s,
        "train_s": train_s,
        "total_s": time.perf_counter() - started,
    }


def _kept(method: Method, constants: Constants, dtype: torch.dtype) -> Constants:
    """Constants in the types in which training keeps them under `dtype`."""
    return {name: tensor.to(dtype) if name in method.wide else tensor for name, tensor in constants.items()}


def _average(displacements: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The plain average."""
    return {name: torch.stack([item[name] for item in displacements]).mean(0) for name in displacements[0]}


@torch.no_grad()
def _logits(
    method: Method, constants: Constants, displacement: dict[str, Tensor], *, batch: int, dtype: torch.dtype
) -> Tensor:
    first = next(iter(constants.values()))
    with torch.autocast(first.device.type, dtype=dtype, enabled=dtype != torch.float32):
        parts = [
            method.logits({name: tensor[start : start + batch] for name, tensor in constants.items()}, displacement)
            for start in range(0, len(first), batch)
        ]
    return torch.cat(parts).float()


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())
