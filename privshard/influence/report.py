"""The influence report: one JSON value that says what each component does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from privshard.composition.metrics import correct_rows, mean_or_none
from privshard.core.errors import InputError
from privshard.core.model import Combine
from privshard.influence import shapley
from privshard.influence.evidence import Evidence
from privshard.influence.geometry import Geometry
from privshard.influence.leave_one_out import drop_effects
from privshard.influence.shapley import Estimate
from privshard.influence.values import Value, accuracy_value, true_logit_value

MAX_EXACT_COMPONENTS = 16
MAX_LOGITS = 2**30
NUM_PAIRS = 256
MIN_PAIRS = 32


def influence_report(
    evidence: Evidence,
    geometry: Geometry,
    *,
    shards: Mapping[str, int],
    rng: np.random.Generator,
    combine: Combine = "average",
) -> dict[str, Any]:
    """Everything known about what the components of one composition do, as plain JSON values.

    - components: [{id, shard, weight, weight_distance, leave_one_out: {accuracy, accuracy_change, mean_logit_shift},
      shapley_accuracy, shapley_accuracy_interval, shapley_logit, per_class: [{class, num_rows, accuracy_with,
      accuracy_without}]}], sorted by shard
    - edits: [{id, leave_one_out, per_class}], as for components, sorted by id
    - composition: {accuracy, base_accuracy, num_rows}; conflict: {ids, cosine}; note: which rows, which guarantee
    - shapley: {accuracy, logit}, each {method, num_coalitions}

    shapley_accuracy sums to accuracy - base_accuracy over the components (of the ensemble, where the composition had
    to be run): exact while 2^S B C is at most 2^30 and S at most 16, else estimated, with a 95 % interval.
    shapley_logit is the mean over rows of the value for the true class's logit: in closed form for the plain mean, else
    by the same two ways. What zero rows cannot tell is None.

    geometry: of the same components. shards: component id -> shard. rng: for sampled orders only. combine: by which
    rule a composition that had to be run was made; the note says what follows from that.

    Raises InputError where the three disagree on the components.

    Test: tests/influence/test_report.py.
    """
    _check_same_components(evidence, geometry, shards)
    accuracy_shapley, logit_shapley = _shapley(evidence, rng)
    cosines = geometry.cosines()
    order = sorted(range(len(evidence.ids)), key=lambda index: (shards[evidence.ids[index]], evidence.ids[index]))
    return {
        "components": [
            {
                "id": evidence.ids[index],
                "shard": shards[evidence.ids[index]],
                "weight": float(evidence.weights_S[index]),
                "weight_distance": float(geometry.distance_S[index]),
                "shapley_accuracy": _value(accuracy_shapley, index),
                "shapley_accuracy_interval": _interval(accuracy_shapley, index),
                "shapley_logit": _value(logit_shapley, index),
                **drop_effects(evidence, evidence.ids[index]),
            }
            for index in order
        ],
        "edits": [{"id": name, **drop_effects(evidence, name)} for name in sorted(evidence.edit_logits)],
        "composition": {
            "accuracy": mean_or_none(correct_rows(evidence.full_logits_BC, evidence.labels_B)),
            "base_accuracy": mean_or_none(correct_rows(evidence.base_logits_BC, evidence.labels_B)),
            "num_rows": len(evidence.labels_B),
        },
        "conflict": {
            "ids": [evidence.ids[index] for index in order],
            "cosine": [[cosines[i][j] for j in order] for i in order],
        },
        "shapley": {"accuracy": _method(accuracy_shapley), "logit": _method(logit_shapley)},
        "note": note(len(evidence.labels_B), run=None if evidence.run_logits is None else combine),
    }


def note(num_rows: int, *, run: Combine | None = None) -> str:
    """Which rows the numbers come from, and what guarantee they have: none.

    run: the rule of a composition whose logits don't follow from those of its components, so that only some numbers are
    of that model; None where all are.
    """
    weights = "Weight distances and conflict use the components alone and have the guarantee of the components."
    if not num_rows:
        return f"There were no held-out rows to compute accuracies, logit shifts and Shapley values on. {weights}"
    rows = "1 held-out row, which is" if num_rows == 1 else f"{num_rows} held-out rows, which are"
    return (
        f"Accuracies, logit shifts and Shapley values were computed on {rows} personal data: they are exact facts "
        f"about those rows and are not covered by the privacy guarantee. {weights}{_RUN.get(run, '')}"
    )


_RUN: Mapping[Combine | None, str] = {
    "average": (
        " The components are not linear in their displacement and are averaged: accuracies and logit shifts, with and "
        "without a component, come from running the averaged models; Shapley values are those of the ensemble of the "
        "components, which an average approximates."
    ),
    "curvature": (
        " The components are composed by their curvature: accuracies and logit shifts, with and without a component, "
        "come from running the models that are composed so; Shapley values are those of the plain average of the "
        "components."
    ),
}


def _shapley(evidence: Evidence, rng: np.random.Generator) -> tuple[Estimate | None, Estimate | None]:
    count, rows = len(evidence.ids), len(evidence.labels_B)
    if not count or not rows:
        return None, None
    logits = evidence.base_logits_BC.size
    accuracy = _solve(evidence, accuracy_value(evidence), logits=logits, rng=rng)
    if evidence.uniform:
        true_logit_S = evidence.z_SBC[:, np.arange(rows), evidence.labels_B].mean(axis=1)
        return accuracy, Estimate(shapley.mean_game(true_logit_S), np.zeros(count), "closed_form", 0)
    return accuracy, _solve(evidence, true_logit_value(evidence), logits=1, rng=rng)


def _solve(evidence: Evidence, value: Value, *, logits: int, rng: np.random.Generator) -> Estimate:
    """Exact values, or as many pairs of orders as the cap on logits admits; a coalition costs `logits` of them."""
    count = len(evidence.ids)
    if count <= MAX_EXACT_COMPONENTS and 2**count * logits <= MAX_LOGITS:
        return shapley.exact(value, evidence.coalition_weights, num_components=count)
    pairs = min(NUM_PAIRS, max(MIN_PAIRS, MAX_LOGITS // (2 * (count + 1) * logits)))
    return shapley.antithetic(value, evidence.coalition_weights, num_components=count, num_pairs=pairs, rng=rng)


def _value(estimate: Estimate | None, index: int) -> float | None:
    return None if estimate is None else float(estimate.values_S[index])


def _interval(estimate: Estimate | None, index: int) -> list[float] | None:
    if estimate is None:
        return None
    value, half = float(estimate.values_S[index]), float(estimate.half_width_S[index])
    return [value - half, value + half]


def _method(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else {"method": estimate.method, "num_coalitions": estimate.num_coalitions}


def _check_same_components(evidence: Evidence, geometry: Geometry, shards: Mapping[str, int]) -> None:
    missing = sorted(set(evidence.ids) - set(shards))
    if geometry.ids != evidence.ids or missing:
        raise InputError(
            f"Expected one set of components: weights name {list(evidence.ids)}, files {list(geometry.ids)}, "
            f"shards are missing for {missing}."
        )
