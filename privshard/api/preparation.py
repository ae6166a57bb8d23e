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
from privshard.core.errors import InputError, PrivshardError
from privshard.store.layout import LEDGER, LEDGER_URL, RECIPE
from privshard.store.ledger import Ledger
from privshard.store.ledger_place import ledger_place
from privshard.store.lock import BusyError, hold
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
    recipe_path = f"{workspace.rstrip('/')}/{RECIPE}"
    where = ledger_place(ObjectStore(workspace), recipe.ledger)
    if not Ledger.exists(where):
        return False
    with Ledger.open(where) as ledger:
        text, done = ledger.get("recipe_yaml"), ledger.get("setup") is not None
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


@contextmanager
def new_or_held(recipe: Recipe, workspace: str) -> Iterator[Workspace]:
    """The workspace, held alone. One that is new and fails before its rows are in leaves nothing behind, so that the
    corrected recipe may be trained there."""
    objects = ObjectStore(workspace)
    fresh = _is_empty(objects)
    try:
        ws = Workspace.create(
            workspace,
            recipe_yaml=recipe.to_yaml(),
            recipe_digest=recipe.digest,
            insecure_seed=recipe.insecure_seed,
            ledger=recipe.ledger,
        )
    except Exception:
        if fresh and objects.is_local:
            _take_back_folder(Path(objects.root), recipe)
        raise
    with ws, ws.hold():
        try:
            yield ws
        except Exception:
            if fresh and ws.ledger.get("ingested") is None:
                _take_back(ws)
            raise


def _is_empty(objects: ObjectStore) -> bool:
    """Whether nothing is where the workspace would be."""
    if objects.is_local:
        place = Path(objects.root)
        return not (place.exists() and any(place.iterdir()))
    return not objects.exists(LEDGER_URL)


def _take_back(ws: Workspace) -> None:
    """Undo a creation. Whoever does holds the workspace, so nobody else has begun to use it."""
    ws.ledger.discard_unused()
    if ws.objects.is_local:
        shutil.rmtree(ws.root, ignore_errors=True)
    else:
        for path in ws.objects.list():
            ws.objects.delete(path)
    shutil.rmtree(keys_path(ws.id).parent, ignore_errors=True)


def _take_back_folder(place: Path, recipe: Recipe) -> None:
    """Remove what a creation that failed halfway left, unless another process is using it by now."""
    identity = None
    try:
        with hold(place):
            file = place / LEDGER
            if file.is_file() and Ledger.exists(file):
                with Ledger.open(file) as ledger:
                    if (
                        ledger.get("ingested") is not None
                        or ledger.get("recipe_digest", recipe.digest) != recipe.digest
                    ):
                        return
                    identity = ledger.workspace_id
            shutil.rmtree(place, ignore_errors=True)
    except BusyError:
        return
    except PrivshardError:  # a full disk, or a ledger that was never whole
        shutil.rmtree(place, ignore_errors=True)
    if identity is not None:
        shutil.rmtree(keys_path(identity).parent, ignore_errors=True)
