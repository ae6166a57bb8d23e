"""The check that weights name known components and are finite numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from privshard.core.errors import InputError


def check_weights(weights: Mapping[str, float], known: Collection[str], *, what: str) -> None:
    """Raise InputError unless every weighted component is in `known` and has a finite weight.

    Components without a weight are left out: that is how a component is dropped.
    """
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise InputError(
            f"Expected {what} for every weighted component; {unknown} have none, there are {sorted(known)}."
        )
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise InputError(f"Component {name}: expected a finite weight, got {weight}.")


def check_space(weights: Mapping[str, float], *, space: str) -> None:
    """Raise InputError for a weighted sum that means nothing in this space: prompts are tokens, which have no zero, so
    only averages of them are defined, whose weights are at least 0 and sum to one."""
    if space == "prompt" and (min(weights.values()) < 0 or abs(math.fsum(weights.values()) - 1) > 1e-9):
        raise InputError(
            f"Components of prompts: expected weights of sum 1, none below 0, got {list(weights.values())}.",
            remedy="Tokens can be averaged, but not scaled, added or subtracted.",
        )
