"""How far an averaged model is from the ensemble that it approximates.

Shapes: B rows, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privshard.composition.metrics import correct_rows, mean_or_none

NOTE = (
    "These components are not linear in their displacement, so the averaged model approximates the mean of their "
    "logits, the ensemble; compose: ensemble has no such error."
)


def averaging_error(
    averaged_BC: np.ndarray, ensemble_BC: np.ndarray, base_BC: np.ndarray, labels_B: np.ndarray
) -> dict[str, Any]:
    """Compare the logits of the averaged model with the mean of its components' logits, on the same rows.

    - mean_logit_difference, max_logit_difference: of |averaged - ensemble|, the Euclidean norm over classes
    - relative: the first over the mean of |ensemble - base|, what the components change at all
    - agreement: share of rows for which both predict the same class; ensemble_accuracy: the ensemble's

    What zero rows cannot tell is None; zero for linear components, up to rounding. Test:
    tests/composition/test_approximation.py.
    """
    difference_B = np.linalg.norm(averaged_BC - ensemble_BC, axis=1)
    change = mean_or_none(np.linalg.norm(ensemble_BC - base_BC, axis=1))
    mean = mean_or_none(difference_B)
    return {
        "mean_logit_difference": mean,
        "max_logit_difference": float(difference_B.max()) if difference_B.size else None,
        "relative": mean / change if mean is not None and change else None,
        "agreement": mean_or_none(averaged_BC.argmax(axis=1) == ensemble_BC.argmax(axis=1)),
        "ensemble_accuracy": mean_or_none(correct_rows(ensemble_BC, labels_B)),
        "note": NOTE,
    }
