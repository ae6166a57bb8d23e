"""Evidence: coalitions agree with dropping components, and bad evidence is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from privshard.core.errors import InputError
from privshard.core.model import Composition


@pytest.mark.parametrize(
    "numbers", [(0.25, 0.25, 0.25, 0.25), (0.1, 0.2, 0.3, 0.4), (1.0, 1.0, 1.0, 1.0), (2.0, 1, 1, 3)]
)
def test_coalition_weights_are_those_a_drop_leaves(make_evidence, numbers):
    weights = {f"c{index:02d}": float(number) for index, number in enumerate(numbers)}
    evidence = make_evidence(4, weights=weights)
    for members in product([False, True], repeat=4):
        dropped = {name for name, kept in zip(evidence.ids, members, strict=True) if not kept}
        rest = Composition("", weights).without(dropped).weights
        expected = [rest.get(name, 0.0) for name in evidence.ids]
        np.testing.assert_allclose(evidence.coalition_weights(np.array([members]))[0], expected, rtol=1e-14, atol=0)


def test_only_the_plain_mean_is_uniform(make_evidence):
    assert make_evidence(3).uniform
    assert not make_evidence(2, weights={"c00": 1.0, "c01": 1.0}).uniform
    assert not make_evidence(2, weights={"c00": 0.4, "c01": 0.6}).uniform


def test_bad_evidence_is_refused(make_evidence):
    with pytest.raises(InputError, match="Component c01: expected a positive weight, got 0"):
        make_evidence(2, weights={"c00": 1.0, "c01": 0.0})
    with pytest.raises(InputError, match=r"Expected logits for every weighted component; \['zz'\]"):
        make_evidence(2, weights={"zz": 1.0})
    evidence = make_evidence(2)
    with pytest.raises(InputError, match="Expected integer labels from 0 to 2"):
        replace(evidence, labels_B=evidence.labels_B + 3)
    broken = {**evidence.component_logits, "c00": evidence.component_logits["c00"] * np.inf}
    with pytest.raises(InputError, match="Expected finite logits"):
        replace(evidence, component_logits=broken)
