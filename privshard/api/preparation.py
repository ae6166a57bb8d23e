"""What is settled before anything is written: the recipe fits the workspace, the constants, base and plan are sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from privshard.api import constants
from privshard.api.recipe import Recipe
from privshard.api.recipe_yaml import parse_yaml
from privshard.api.setup import Planned, make_setup
from privshard.core.errors import InputError, PrivshardError
from privshard.core.jobs import OnProgress
from privshard.store.creation import created
from privshard.store.layout import RECIPE
from privshard.store.ledger import Ledger
from privshard.store.ledger_place import ledger_place
from privshard.store.objects import ObjectStore
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
        return make_setup(
            recipe,
            classes=self.classes,
            nominal=nominal,
            count_noise_multiplier=count_noise(recipe),
            loaded=(self.planned.base, self.planned.public),
        )


def count_noise(recipe: Recipe) -> float | None:
    """The noise of the count that this recipe needs; None where it needs none."""
    counted = recipe.private and constants.nominal_units(recipe) is None
    return constants.COUNT_NOISE_MULTIPLIER if counted else None


def prepare(recipe: Recipe, *, on_progress: OnProgress = lambda _: None) -> Prepared:
    """Everything that a recipe can be refused for without reading a private row: classes, base, weights, budget.

    Nothing is written. Labels are read from the rows only without differential privacy.
    """
    classes = constants.classes_of(recipe, lambda: {row.label for row in constants.source_rows(recipe)})
    nominal = constants.nominal_units(recipe)
    if nominal is None and not recipe.private:
        nominal = recipe.shards
    planned = make_setup(
        recipe,
        classes=classes,
        nominal=float(nominal or recipe.shards),
        count_noise_multiplier=count_noise(recipe),
        on_progress=on_progress,
    )
    return Prepared(classes, None if nominal is None else float(nominal), planned)


def is_set_up(recipe: Recipe, workspace: str) -> bool:
    """Whether the workspace has come as far as its setup; InputError, naming the keys, where another recipe made it."""
    recipe_path = f"{workspace.rstrip('/')}/{RECIPE}"
    facts = _facts(workspace, recipe.ledger)
    text, done = facts.get("recipe_yaml"), "setup" in facts
    if text is None:  # its creation was interrupted
        return False
    held = Recipe(**parse_yaml(str(text), source=recipe_path))
    changed = held.changed_keys(recipe)
    if changed:
        raise InputError(
            f"Workspace {workspace} belongs to another recipe; it differs in {', '.join(changed[:5])}.",
            remedy=f"Train into another folder with --workspace, or use {recipe_path}.",
        )
    return done


def _facts(workspace: str, asked: str | None) -> Mapping[str, Any]:
    """What the workspace's ledger says; nothing where there is none, or where it is taken back while it is read."""
    where = ledger_place(ObjectStore(workspace), asked)
    if not Ledger.exists(where):
        return {}
    try:
        with Ledger.open(where) as ledger:
            return ledger.facts()
    except PrivshardError:
        if Ledger.exists(where):
            raise
        return {}


@contextmanager
def new_or_held(recipe: Recipe, workspace: str) -> Iterator[Workspace]:
    """The workspace, held alone. One that is new and fails before its rows are in leaves nothing behind, so that the
    corrected recipe may be trained there."""
    with (
        created(
            workspace,
            recipe_yaml=recipe.to_yaml(),
            recipe_digest=recipe.digest,
            insecure_seed=recipe.insecure_seed,
            ledger=recipe.ledger,
            is_begun=lambda ws: ws.ledger.get("ingested") is not None,
        ) as ws,
        ws,
    ):
        yield ws
