"""Natural error groups: images of one class that a model takes for the same other class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privshard.core.errors import InputError


@dataclass(frozen=True)
class ErrorGroup:
    """Rows with this label that are all predicted as that other class; at least two."""

    label: int
    prediction: int
    rows: tuple[int, ...]

    @property
    def name(self) -> str:
        """LABEL-PREDICTION."""
        return f"{self.label}-{self.prediction}"


def error_groups(labels_B: np.ndarray, predictions_B: np.ndarray, *, least: int = 8) -> list[ErrorGroup]:
    """Every pair (label, prediction) with at least `least` errors, the largest first, ties by label and prediction."""
    if least < 2:
        raise InputError(f"groups: expected at least 2 images in a group, got {least}.")
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, (label, prediction) in enumerate(zip(labels_B.tolist(), predictions_B.tolist(), strict=True)):
        if label != prediction:
            found[label, prediction].append(row)
    groups = [ErrorGroup(*pair, tuple(rows)) for pair, rows in found.items() if len(rows) >= least]
    return sorted(groups, key=lambda group: (-len(group.rows), group.label, group.prediction))


def split_groups(
    groups: Sequence[ErrorGroup], *, validation: int, test: int, seed: int
) -> tuple[list[ErrorGroup], list[ErrorGroup]]:
    """`validation` groups to tune on and `test` others to report, drawn from `seed`.

    No label of one is the label of the other, so that what is tuned has never seen an image of what is reported.
    InputError where there are too few groups for both.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    reported: list[ErrorGroup] = []
    tuned: list[ErrorGroup] = []
    for at in order.tolist():
        group = groups[at]
        if len(reported) < test and group.label not in {held.label for held in tuned}:
            reported.append(group)
        elif len(tuned) < validation and group.label not in {held.label for held in reported}:
            tuned.append(group)
    if len(reported) < test or len(tuned) < validation:
        raise InputError(
            f"groups: expected {test} to report and {validation} to tune on, with labels of their own, got "
            f"{len(reported)} and {len(tuned)} of {len(groups)}.",
            remedy="Give more labelled images, or ask for fewer groups or smaller ones.",
        )
    return tuned, reported
