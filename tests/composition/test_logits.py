"""Composed logits against a loop, and the exactness of a drop."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import exact_weighted_sum

from privshard.composition.logits import composed_logits
from privshard.core.errors import InputError
from privshard.core.model import Composition

RNG = np.random.default_rng(0)
BASE_BC = RNG.standard_normal((7, 4)).astype(np.float32)
Z = {name: RNG.standard_normal((7, 4)).astype(np.float32) for name in "abcd"}


def test_composed_logits_are_the_rational_sum():
    weights = {"a": 0.25, "b": 1 / 3, "c": -2.0, "d": 1e-3}
    expected = exact_weighted_sum({"base": BASE_BC, **Z}, {"base": 1.0, **weights})
    np.testing.assert_allclose(composed_logits(BASE_BC, Z, weights), expected, rtol=1e-13, atol=1e-14)


def test_the_empty_composition_is_the_base_and_a_copy():
    found = composed_logits(BASE_BC, Z, {})
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, BASE_BC)
    found += 1
    assert not np.array_equal(found, BASE_BC)


def test_inputs_are_left_alone():
    base_BC = BASE_BC.astype(np.float64)
    composed_logits(base_BC, Z, {"a": 1.0})
    np.testing.assert_array_equal(base_BC, BASE_BC)


def test_dropped_component_and_order_leave_no_trace():
    kept = Composition.uniform("b", list(Z)).without({"c"}).weights
    others = {name: Z[name] for name in "dba"}
    again = composed_logits(BASE_BC, others, dict(reversed(kept.items())))
    assert composed_logits(BASE_BC, Z, kept).tobytes() == again.tobytes()


def test_unknown_components_and_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"Expected logits for every weighted component; \['z'\]"):
        composed_logits(BASE_BC, Z, {"z": 1.0})
    with pytest.raises(InputError, match=r"Component a: expected logits of shape \(7, 4\), got \(1, 4\)"):
        composed_logits(BASE_BC, {"a": Z["a"][:1]}, {"a": 1.0})
