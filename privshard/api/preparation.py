"""What is settled before anything is written: the recipe fits the workspace, the constants, base and plan are sound."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from privshard.api import constants
from privshard.api.recipe import Recipe
from privshard.api.recipe_yaml import parse_yaml
from privshard.api.setup import Planned, make_setup
from privshard.core.errors import InputError
from privshard.store.ledger import Ledger
from privshard.store.ledger_place import ledger_place
from privshard.store.objects import ObjectStore
from privshard.store.secrets import keys_path
from privshard.store.workspace import Workspace


@dataclass(frozen=True)
class Prepared:
    """The public constants of a training, and its setup.

    nominal: the public number of units; None where it has to be counted with noise, and `planned` then stands for one
    unit a shard until `with_nominal`. Without differential privacy no number is needed.
    """

    classes: tuple[str, ...]
    nominal: float | None
    planned: Planned

    @property
    def counted(self) -> bool:
        """Whether the number of units is not known beforehand."""
        return self.nominal is None

    def with_nominal(self, recipe: Recipe, nominal: float) -> Planned:
        """The setup for a number of units that was counted."""
        return make_setup(recipe, classes=self.classes, nominal=nominal, count_noise_multiplier=count_noise(recipe))


def count_noise(recipe: Recipe) -> float | None:
    """The noise of the count that this recipe needs; None where it needs none."""
    counted = recipe.private and constants.nominal_units(recipe) is None
    return constants.COUNT_NOISE_MULTIPLIER if counted else None


def prepare(recipe: Recipe) -> Prepared:
    """Everything that a recipe can be refused for without reading a private row: classes, base, weights, budget.

    Nothing is written. Labels are read from the rows only without differential privacy.
    """
    classes = constants.classes_of(recipe, lambda: {row.label for row in constants.source_rows(recipe)})
    nominal = constants.nominal_units(recipe)
    if nominal is None and not recipe.private:
        nominal = recipe.shards
    planned = make_setup(
        recipe, classes=classes, nominal=float(nominal or recipe.shards), count_noise_multiplier=count_noise(recipe)
    )
    return Prepared(classes, None if nominal is None else float(nominal), planned)


def is_set_up(recipe: Recipe, workspace: str) -> bool:
    """Whether the workspace has come as far as its setup; InputError, naming the keys, where another recipe made it."""
    place = Path(workspace)
    where = ledger_place(ObjectStore(workspace), recipe.ledger)
    if not Ledger.exists(where):
        return False
    with Ledger.open(where) as ledger:
        text, done = ledger.get("recipe_yaml"), ledger.get("setup") is not None
    if text is None:  # its creation was interrupted
        return False
    held = Recipe(**parse_yaml(str(text), source=str(place / "recipe.yaml")))
    changed = held.changed_keys(recipe)
    if changed:
        raise InputError(
            f"Workspace {workspace} belongs to another recipe; it differs in {', '.join(changed[:5])}.",
            remedy=f"Train into another folder with --workspace, or use {place / 'recipe.yaml'}.",
        )
    return done


@contextmanager
def new_or_held(recipe: Recipe, workspace: str) -> Iterator[Workspace]:
    """The workspace, held alone. One that is new and fails before its rows are in leaves nothing behind, so that the
    corrected recipe may be trained there."""
    place = Path(workspace)
    fresh = "://" not in workspace and not (place.exists() and any(place.iterdir()))
    identity, ingested = None, False
    try:
        with Workspace.create(
            workspace,
            recipe_yaml=recipe.to_yaml(),
            recipe_digest=recipe.digest,
            insecure_seed=recipe.insecure_seed,
            ledger=recipe.ledger,
        ) as ws:
            identity = ws.id
            try:
                with ws.hold():
                    yield ws
            except Exception:
                if fresh and ws.ledger.get("ingested") is None:
                    ws.ledger.discard_unused()
                raise
            finally:
                ingested = ws.ledger.get("ingested") is not None
    except Exception:
        if fresh and not ingested:
            shutil.rmtree(place, ignore_errors=True)
            if identity is not None:
                shutil.rmtree(keys_path(identity).parent, ignore_errors=True)
        raise
