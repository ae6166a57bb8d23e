"""What a recipe may not ask for where its settings are only compared."""

from __future__ import annotations

from privshard.api.recipe import Recipe
from privshard.core.errors import InputError


def refuse_augmentations(verb: str, recipe: Recipe) -> None:
    """InputError for a recipe with augmentations: trainings that are only scored make none, so comparing them would
    compare nothing."""
    if recipe.training.augmentations:
        raise InputError(
            f"training.augmentations: expected 0 in a {verb}, got {recipe.training.augmentations}.",
            remedy="Compare without them (--set training.augmentations=0); what is chosen carries over.",
        )
