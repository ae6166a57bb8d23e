"""The logits of a composition from the cached logits of its components.

Shapes: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from privshard.composition.weights import check_weights
from privshard.core.errors import InputError


def composed_logits(
    base_logits_BC: np.ndarray, component_logits: Mapping[str, np.ndarray], weights: Mapping[str, float]
) -> np.ndarray:
    """f0 + sum_i weight_i z_i, where z_i = f(x; D_i) - f0 is what component i alone adds to the logits f0 of the base.

    Costs no model evaluation, whichever components are dropped. Exact for ensembles; and for averages of displacements
    where methods are linear in them (`tangent`, `head`: z_i = J D_i). For other averages logits do not add, and this
    does not apply: see `composition.members.arithmetic`.

    Guarantees: float64, summed in sorted order of the ids, so a drop gives bit for bit the logits of the other
    components under their weights; empty weights give the base's logits.

    base_logits_BC: logits of the base. component_logits: id -> z_i of shape (B, C); may hold more than are weighted.

    Raises InputError for a weighted component without logits and for shapes that differ.

    >>> composed_logits(np.ones((1, 2)), {"a": np.array([[2.0, 4.0]])}, {"a": 0.5}).tolist()
    [[2.0, 3.0]]

    Test: tests/composition/test_logits.py.
    """
    check_weights(weights, component_logits, what="logits")
    total_BC = np.array(base_logits_BC, dtype=np.float64)
    for name in sorted(weights):
        z_BC = np.asarray(component_logits[name])
        if z_BC.shape != total_BC.shape:
            raise InputError(f"Component {name}: expected logits of shape {total_BC.shape}, got {z_BC.shape}.")
        total_BC += np.multiply(z_BC, weights[name], dtype=np.float64)
    return total_BC
