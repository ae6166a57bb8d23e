"""What the command and Python programs call. Everything is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privshard.api.auditing import audit as audit
    from privshard.api.budgeting import budget as budget
    from privshard.api.decompose_recipe import DecomposeRecipe as DecomposeRecipe
    from privshard.api.decompose_run import decompose as decompose
    from privshard.api.decompose_use import analyse as analyse
    from privshard.api.decompose_use import recompose as recompose
    from privshard.api.decompose_use import sizes as sizes
    from privshard.api.edit_applying import edit_apply as edit_apply
    from privshard.api.edit_exporting import edit_export as edit_export
    from privshard.api.edit_reverting import edit_revert as edit_revert
    from privshard.api.edit_searching import edit_search as edit_search
    from privshard.api.edit_training import edit_train_locator as edit_train_locator
    from privshard.api.exporting import export as export
    from privshard.api.reading import evaluate as evaluate
    from privshard.api.reading import import_folder as import_folder
    from privshard.api.reading import influence as influence
    from privshard.api.reading import predict as predict
    from privshard.api.reading import verify as verify
    from privshard.api.recipe import Recipe as Recipe
    from privshard.api.removal import forget as forget
    from privshard.api.running import cancel as cancel
    from privshard.api.running import status as status
    from privshard.api.running import timeline as timeline
    from privshard.api.running import train_detached as train_detached
    from privshard.api.sweeping import sweep as sweep
    from privshard.api.training import plan_training as plan_training
    from privshard.api.training import train as train
    from privshard.api.tuning import tune as tune
    from privshard.store.workspace import Workspace as Workspace

_HOMES = {
    **dict.fromkeys(("evaluate", "import_folder", "influence", "predict", "verify"), "privshard.api.reading"),
    **dict.fromkeys(("analyse", "recompose", "sizes"), "privshard.api.decompose_use"),
    "budget": "privshard.api.budgeting",
    "decompose": "privshard.api.decompose_run",
    "DecomposeRecipe": "privshard.api.decompose_recipe",
    "Recipe": "privshard.api.recipe",
    "Workspace": "privshard.store.workspace",
    "audit": "privshard.api.auditing",
    "edit_apply": "privshard.api.edit_applying",
    "edit_export": "privshard.api.edit_exporting",
    "edit_revert": "privshard.api.edit_reverting",
    "edit_search": "privshard.api.edit_searching",
    "edit_train_locator": "privshard.api.edit_training",
    "export": "privshard.api.exporting",
    "forget": "privshard.api.removal",
    **dict.fromkeys(("cancel", "status", "timeline", "train_detached"), "privshard.api.running"),
    "sweep": "privshard.api.sweeping",
    "plan_training": "privshard.api.training",
    "train": "privshard.api.training",
    "tune": "privshard.api.tuning",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'privshard.api' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
