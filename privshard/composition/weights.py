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
