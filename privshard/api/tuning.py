"""`tune`: try settings of a recipe by cross-validation over the subjects of its training rows."""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from privshard.api import constants
from privshard.api.comparable import refuse_augmentations
from privshard.api.recipe import Recipe
from privshard.core.errors import InputError
from privshard.core.jobs import OnProgress, Progress, counting

if TYPE_CHECKING:
    from torch import Tensor

    from privshard.core.method import Constants, Method
    from privshard.core.privacy import MechanismPlan
    from privshard.data.examples import SourceRow
    from privshard.training.shard import Trained

MAX_CANDIDATES = 64
STATEMENT = (
    "Not private: candidates were compared on private rows without noise, and the choice may tell something about "
    "them. The epsilon of a later training does not cover it. To keep a guarantee for everything, tune on public data "
    "of the same kind, or use the documented defaults."
)
_PRIVATE = {"training.lr": (0.1, 0.3, 1.0), "privacy.max_grad_norm": (0.3, 1.0)}
_EXACT = {"training.weight_decay": (0.0003, 0.001, 0.003, 0.01, 0.03)}
_TUNED = ("training.", "privacy.max_grad_norm", "base.head")


def tune(
    recipe: Recipe,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    folds: int = 3,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Compare settings of `recipe` by cross-validation over train subjects; nothing is written.

    Every fold's subjects are scored by the composition of shards that learnt from the other folds' subjects, with the
    recipe's number of shards, noise and everything else. Subjects are dealt to the folds at random, to each as many (or
    one more); shards are keyed hashes of subjects under a new key.
    Rows that the data mark as held out are never read beyond their mark; where the data mark none, all rows take part,
    also the tenth of the subjects that a workspace would hold out, whose metrics then are no longer untouched.

    The choice is not private, and says so (`statement`): no budget is spent, since there is no workspace and nothing of
    the kind is promised. grid: recipe key -> values, all combinations are tried (at most 64); None: the learning rate
    and the clipping norm under differential privacy, the ridge without. folds: 2 or more.

    InputError for a key that changes more than the optimization, for values that the recipe refuses, and for
    augmentations, which are not made here.

    Test: tests/api/test_tuning.py.
    """
    tell = on_progress or (lambda _: None)
    candidates = _candidates(recipe, grid)
    if folds < 2:
        raise InputError(f"folds: expected 2 or more, got {folds}.")
    recipes = [recipe.with_values(values) for values in candidates]
    for each in recipes:
        refuse_augmentations("tuning", each)
        constants.optimization(each)  # refuses before rows are read
    rows = [row for row in constants.source_rows(recipe) if row.split != "eval"]
    bench = _Bench(rows, folds, tell)
    num = len(bench)
    done, total = 0, len(recipes) * folds * recipe.shards

    def count() -> None:
        nonlocal done
        done += 1
        tell(Progress("tune", None, "tune", done, total))

    found = []
    for values, each in zip(candidates, recipes, strict=True):
        right = bench.right(each, count)
        found.append({"settings": values, "accuracy": right / num, "standard_error": _error(right, num)})
    best = max(found, key=lambda item: item["accuracy"])
    return {
        "candidates": found,
        "best": best["settings"],
        "folds": folds,
        "num_rows": num,
        "private": False,
        "statement": STATEMENT,
    }


def _candidates(recipe: Recipe, grid: Mapping[str, Sequence[Any]] | None) -> list[dict[str, Any]]:
    """Every combination of the grid's values."""
    if grid is None:
        exact = constants.optimization(recipe).params.optimizer == "exact"
        grid = _EXACT if exact else _PRIVATE if recipe.private else {"training.lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
    for key, values in grid.items():
        if not key.startswith(_TUNED):
            raise InputError(
                f"tune: expected keys of the optimization (training.*, privacy.max_grad_norm, base.head_…), got {key}.",
                remedy="What decides the data, the model or the guarantee is not tuned.",
            )
        if not values:
            raise InputError(f"tune: expected at least one value for {key}, got none.")
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(found) > MAX_CANDIDATES:
        raise InputError(f"tune: expected at most {MAX_CANDIDATES} combinations, got {len(found)}.")
    return found


def _error(right: int, num: int) -> float:
    share = right / num
    return math.sqrt(share * (1 - share) / num)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What one base and method computed for all rows."""

    method: Method
    constants: Constants
    classes: tuple[str, ...]
    device: str


class _Bench:
    """The rows and their folds; encodings are made once a base."""

    def __init__(self, rows: Sequence[SourceRow], folds: int, tell: OnProgress = lambda _: None) -> None:
        from privshard.data.examples import example_id, subject_of_image

        key = secrets.token_bytes(32)
        subjects = [row.subject or subject_of_image(row.image) for row in rows]
        named = {  # identical rows of one subject count once, as in a workspace
            example_id(key, image=row.image, label=row.label, subject=subject): (row, subject)
            for row, subject in zip(rows, subjects, strict=True)
        }
        self._ids = sorted(named)
        self._rows = [named[name][0] for name in self._ids]
        self._subjects = [named[name][1] for name in self._ids]
        dealt = secrets.SystemRandom().sample(sorted(set(self._subjects)), len(set(self._subjects)))
        fold_of = {subject: place % folds for place, subject in enumerate(dealt)}
        self._fold = [fold_of[subject] for subject in self._subjects]
        self._num_folds, self._tell = folds, tell
        self._shard_key = secrets.token_bytes(32)
        self._encoded: dict[str, _Encoded] = {}
        if len(dealt) < folds:
            raise InputError(
                f"folds: expected at least {folds} train subjects, one for each fold, got {len(dealt)}.",
                remedy="Use fewer folds.",
            )

    def __len__(self) -> int:
        return len(self._rows)

    def right(self, recipe: Recipe, count: Any) -> int:
        """How many rows are classified right by models that did not learn from their fold."""
        import numpy as np
        import torch

        from privshard.api import scoring

        encoded, flags = self._encode(recipe), recipe.flags()
        index = {name: place for place, name in enumerate(encoded.classes)}
        labels = torch.tensor([index[row.label] for row in self._rows], device=encoded.device)
        return sum(
            scoring.right(
                encoded.method,
                encoded.constants,
                self._components(recipe, encoded, labels, fold, count),
                rule=recipe.compose.rule,
                rows_B=np.flatnonzero(np.array(self._fold) == fold),
                labels_B=labels,
                max_rows=flags.micro_batch * encoded.method.batch_scale,
                dtype=getattr(torch, flags.dtype),
            )
            for fold in range(self._num_folds)
        )

    def _components(self, recipe: Recipe, encoded: _Encoded, labels: Tensor, fold: int, count: Any) -> list[Trained]:
        """What the shards learn without one fold."""
        import torch

        from privshard.core.partition import Partition
        from privshard.privacy.stream import fresh_key
        from privshard.training.shard import train_shard

        partition = Partition(self._shard_key, recipe.shards)
        chosen = self._chosen(recipe, encoded)
        plan = self._plan(recipe, encoded, chosen)
        found = []
        for shard in range(recipe.shards):
            rows = [
                i
                for i, subject in enumerate(self._subjects)
                if self._fold[i] != fold and partition.shard_of(subject) == shard
            ]
            at = torch.tensor(rows, dtype=torch.long, device=encoded.device)
            units = self._ids if recipe.privacy.unit == "example" else self._subjects
            trained = train_shard(
                encoded.method,
                {name: tensor[at] for name, tensor in encoded.constants.items()} if rows else None,
                labels_B=labels[at],
                unit_of_row=[units[i] for i in rows],
                plan=plan,
                params=chosen.settled(plan, num_shards=recipe.shards),
                root_key=fresh_key(),
                max_rows=recipe.flags().micro_batch * encoded.method.batch_scale,
                dtype=getattr(torch, recipe.flags().dtype),
            )
            found.append(trained)
            count()
        return found

    def _per_shard(self, recipe: Recipe) -> float:
        units = self._ids if recipe.privacy.unit == "example" else set(self._subjects)
        return (constants.nominal_units(recipe) or len(units)) / recipe.shards

    def _chosen(self, recipe: Recipe, encoded: _Encoded) -> constants.Optimization:
        """What the recipe's own training would do."""
        return constants.optimization(recipe, units_per_shard=self._per_shard(recipe), num_classes=len(encoded.classes))

    def _plan(self, recipe: Recipe, encoded: _Encoded, chosen: constants.Optimization) -> MechanismPlan:
        """The mechanism that the recipe's own training would have; fewer units take part in a fold."""
        from privshard.privacy.plan import make_plan

        return make_plan(
            recipe.privacy_params(),
            sample_rate=chosen.sample_rate,
            steps=chosen.steps,
            nominal_units_per_shard=self._per_shard(recipe) * (self._num_folds - 1) / self._num_folds,
            mean_releases=int(chosen.center and encoded.method.radius is not None),
        )

    def _encode(self, recipe: Recipe) -> _Encoded:
        import torch

        from privshard.api import worker
        from privshard.api.methods import make_method
        from privshard.api.public_core import load_recipe_base
        from privshard.data.images import image_batches
        from privshard.training.encoding import encode

        key = str((recipe.base, recipe.method, recipe.public))
        if key not in self._encoded:
            flags = recipe.flags()
            device = worker.pick_device(flags)
            classes = constants.classes_of(recipe, lambda: {row.label for row in self._rows})
            base, _ = load_recipe_base(recipe, classes, on_progress=self._tell)
            method = make_method(recipe.method_spec(), base.view.to(device), core=base.core)
            images = [row.image for row in self._rows]
            batches = image_batches(images, transform=base.transform, batch_size=flags.micro_batch)
            found = encode(
                method,
                batches,
                num_rows=len(images),
                batch_size=flags.micro_batch,
                device=device,
                dtype=getattr(torch, flags.dtype),
                on_batch=counting(self._tell, "encode", len(images)),
            )
            assert found is not None
            self._encoded[key] = _Encoded(method, found, classes, device)
        return self._encoded[key]
