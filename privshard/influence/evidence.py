"""The cached logits that influence is computed from, checked once.

Shapes: S components, B rows, C classes, M coalitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from privshard.composition.logits import composed_logits
from privshard.composition.metrics import check_rows
from privshard.composition.weights import check_weights
from privshard.core.errors import InputError
from privshard.core.model import Composition


@dataclass(frozen=True, eq=False)
class Evidence:
    """A composition on labelled rows: logits of the base, what each component adds, weights and labels.

    base_logits_BC: f0. component_logits: id -> z_i, what i alone adds, (B, C), one for every weighted component.
    weights: id -> public weight, positive. labels_B: index into `classes`. run_logits: where the logits of a
    composition don't follow from those of its components (averages of displacements that aren't linear, or by
    curvature), what running gave: under None the whole composition's, under an id those of the composition without it.
    Other subsets are then taken as ensembles, which the averages approximate. edit_logits: id -> what an edit adds to
    every composition; base_logits_BC holds all of them.

    Anything else is an InputError. Rows are usually held out, personal data: nothing computed from them is covered
    by the guarantee of the components.
    """

    base_logits_BC: np.ndarray
    component_logits: Mapping[str, np.ndarray]
    weights: Mapping[str, float]
    labels_B: np.ndarray
    classes: tuple[str, ...]
    run_logits: Mapping[str | None, np.ndarray] | None = None
    edit_logits: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        base_BC, labels_B = check_rows(self.base_logits_BC, self.labels_B, self.classes)
        object.__setattr__(self, "base_logits_BC", base_BC)
        object.__setattr__(self, "labels_B", labels_B)
        check_weights(self.weights, self.component_logits, what="logits")
        for name, weight in self.weights.items():
            if weight <= 0:
                raise InputError(
                    f"Component {name}: expected a positive weight, got {weight}.",
                    remedy="Influence compares compositions by leaving components out; leave this one out beforehand.",
                )
        if self.run_logits is not None and set(self.run_logits) != {None, *self.weights}:
            raise InputError("Influence: expected the logits of the composition, and of it without each component.")
        for logits_BC in (self.full_logits_BC, *(self.run_logits or {}).values(), *self.edit_logits.values()):
            check_rows(logits_BC, labels_B, self.classes)

    @property
    def ids(self) -> tuple[str, ...]:
        """Component ids, sorted: the order of every axis S."""
        return tuple(sorted(self.weights))

    @cached_property
    def weights_S(self) -> np.ndarray:
        """Weights in the order of `ids`."""
        return np.array([self.weights[name] for name in self.ids], dtype=np.float64)

    @cached_property
    def z_SBC(self) -> np.ndarray:
        """Component logits in the order of `ids`, float64."""
        stacked = [np.asarray(self.component_logits[name], dtype=np.float64) for name in self.ids]
        return np.stack(stacked) if stacked else np.zeros((0, *self.base_logits_BC.shape))

    @cached_property
    def full_logits_BC(self) -> np.ndarray:
        """Logits of the whole composition."""
        if self.run_logits is not None:
            return np.asarray(self.run_logits[None], dtype=np.float64)
        return composed_logits(self.base_logits_BC, self.component_logits, self.weights)

    @property
    def uniform(self) -> bool:
        """Whether the composition is the plain mean of its components."""
        return all(weight == 1.0 / len(self.weights) for weight in self.weights.values())

    def logits_without(self, name: str) -> np.ndarray:
        """Logits of the composition without a component or an edit; of the base where nothing is left."""
        if name in self.edit_logits:
            return self.full_logits_BC - self.edit_logits[name]
        if self.run_logits is not None:
            return np.asarray(self.run_logits[name], dtype=np.float64)
        rest = Composition("", self.weights).without({name}).weights
        return composed_logits(self.base_logits_BC, self.component_logits, rest)

    def coalition_weights(self, member_MS: np.ndarray) -> np.ndarray:
        """Weights (M, S) of the compositions of the marked members: proportions and sum kept, as a drop does."""
        kept_MS = member_MS * self.weights_S
        rest_M1 = kept_MS.sum(axis=1, keepdims=True)
        scale_M1 = np.divide(self.weights_S.sum(), rest_M1, out=np.zeros_like(rest_M1), where=rest_M1 > 0)
        return kept_MS * scale_M1
