"""What dropping one component or edit would do to accuracy, classes and logits.

Shapes: B rows, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privshard.composition.metrics import class_counts, correct_rows, mean_or_none
from privshard.influence.evidence import Evidence


def drop_effects(evidence: Evidence, component: str) -> dict[str, Any]:
    """Compare the composition with what dropping `component` leaves; the base, if it is the only one.

    Under mean composition the logits without i are f0 + (S zbar - z_i) / (S - 1); in general those of
    `Composition.without`, summed as a drop sums them, so the accuracy is that of the model after the drop. An edit
    takes what it adds with it.

    leave_one_out:
    - accuracy: share of rows that the composition without the component gets right
    - accuracy_change: accuracy without minus accuracy with; negative where the component helps
    - mean_logit_shift: mean over rows of |logits without - logits with|, the Euclidean norm over classes

    per_class: [{class, num_rows, accuracy_with, accuracy_without}], among the rows of each class.

    What zero rows cannot tell is None. Test: tests/influence/test_leave_one_out.py.
    """
    without_BC = evidence.logits_without(component)
    with_correct_B = correct_rows(evidence.full_logits_BC, evidence.labels_B)
    without_correct_B = correct_rows(without_BC, evidence.labels_B)
    return {
        "leave_one_out": {
            "accuracy": mean_or_none(without_correct_B),
            "accuracy_change": mean_or_none(without_correct_B.astype(np.float64) - with_correct_B),
            "mean_logit_shift": mean_or_none(np.linalg.norm(without_BC - evidence.full_logits_BC, axis=1)),
        },
        "per_class": [
            {
                "class": name,
                "num_rows": count,
                "accuracy_with": mean_or_none(with_correct_B[evidence.labels_B == index]),
                "accuracy_without": mean_or_none(without_correct_B[evidence.labels_B == index]),
            }
            for index, (name, count) in enumerate(
                zip(evidence.classes, class_counts(evidence.labels_B, evidence.classes), strict=True)
            )
        ],
    }
