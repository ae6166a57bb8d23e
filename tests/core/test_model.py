"""Compositions: public weights, content digests, and what is left without some components."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privshard.core.errors import InputError, VerificationError
from privshard.core.model import BaseSpec, ComponentRecord, Composition
from privshard.core.privacy import PrivacySpend

NAMES = st.lists(st.sampled_from([f"c{number}" for number in range(9)]), unique=True, min_size=1)
WEIGHTS = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 16).map(lambda n: n / 4), min_size=2)


@given(NAMES, st.data())
def test_dropping_from_an_average_is_the_average_of_the_others_bit_for_bit(names, data):
    dropped = set(data.draw(st.lists(st.sampled_from(names))))
    kept = [name for name in names if name not in dropped]
    left = Composition.uniform("b", names).without(dropped)
    assert left == (Composition.uniform("b", kept) if kept else Composition("b", {}))
    assert all(weight == 1 / len(kept) for weight in left.weights.values())


@given(WEIGHTS, st.data())
def test_dropping_keeps_the_sum_and_the_proportions(weights, data):
    dropped = set(data.draw(st.lists(st.sampled_from(sorted(weights)), max_size=len(weights) - 1)))
    left = Composition("b", weights).without(dropped).weights
    assert left.keys() == weights.keys() - dropped
    rest = sum(Fraction(weights[name]) for name in left)
    for name, weight in left.items():
        exact = Fraction(weights[name]) * sum(map(Fraction, weights.values())) / rest
        assert weight == pytest.approx(float(exact), rel=1e-15)


def test_dropping_nothing_of_an_average_changes_nothing():
    average = Composition.uniform("b", ["c0", "c1", "c2"])
    assert average.without(set()) == average
    assert average.without({"never there"}) == average


def test_a_component_occurs_once():
    with pytest.raises(InputError, match=r"once.*'c0', 'c0'"):
        Composition.uniform("b", ["c0", "c0"])


def test_digest_is_of_base_components_and_weights():
    one = Composition("b", {"c0": 0.5, "c1": 0.5})
    assert one.digest == Composition("b", {"c1": 0.5, "c0": 0.5}).digest
    others = [
        Composition("a", {"c0": 0.5, "c1": 0.5}),
        Composition("b", {"c0": 0.5, "c1": 0.25}),
        Composition("b", {"c0": 0.5}),
        Composition("b", {}),
        Composition("b", {"c0": 0.5, "c1": 0.5}, frozenset({"c1"})),
        Composition("b", {"c0": 0.5, "c1": 0.5}, combine="ensemble"),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 7


def test_dropping_leaves_what_adds_as_it_is():
    made = Composition.uniform("b", ["c0", "c1", "c2"]).adding("edit", weight=2.0)
    assert made.averaged == {name: 1 / 3 for name in ("c0", "c1", "c2")}
    assert made.without({"c0"}) == Composition("b", {"c1": 0.5, "c2": 0.5, "edit": 2.0}, frozenset({"edit"}))
    assert made.without({"edit"}) == Composition.uniform("b", ["c0", "c1", "c2"])
    assert made.without({"c0", "c1", "c2"}) == Composition("b", {"edit": 2.0}, frozenset({"edit"}))
    assert made.without(set(made.weights)) == Composition("b", {})
    weighted = Composition("b", {"c0": 1.0, "c1": 3.0, "edit": 1.0}, frozenset({"edit"}), "ensemble")
    assert weighted.without({"c0"}) == Composition("b", {"c1": 4.0, "edit": 1.0}, frozenset({"edit"}), "ensemble")


def test_a_replacement_has_the_place_of_what_it_replaces():
    made = Composition("b", {"c0": 0.25, "c1": 0.75}, combine="ensemble").adding("edit")
    assert made.replacing("c1", "new").weights == {"c0": 0.25, "new": 0.75, "edit": 1.0}
    assert made.replacing("edit", "other").added == {"other"}
    assert made.replacing("c1", "new").combine == "ensemble"


def test_what_adds_has_a_weight_and_occurs_once():
    with pytest.raises(InputError, match="edit"):
        Composition("b", {"c0": 1.0}, frozenset({"edit"}))
    with pytest.raises(InputError, match="once"):
        Composition("b", {"c0": 1.0}).adding("c0")
    with pytest.raises(InputError, match=r"average, ensemble or curvature.*'median'"):
        Composition("b", {"c0": 1.0}, combine="median")


def test_older_compositions_are_read_and_newer_ones_refused():
    older = {"base": "b", "weights": {"c0": 1.0}}
    assert Composition.from_json(older) == Composition("b", {"c0": 1.0})
    assert Composition("b", {"c0": 1.0}).to_json() == older
    with pytest.raises(VerificationError, match=r"gates.*upgrade"):
        Composition.from_json({**older, "gates": {}})


@given(NAMES)
def test_json_keeps_a_composition(names):
    made = Composition.uniform("b", names)
    for composition in (made, Composition("b", made.weights, frozenset(names[:1]), "ensemble")):
        assert Composition.from_json(json.loads(json.dumps(composition.to_json()))) == composition
    assert made.components == tuple(sorted(names))


@pytest.mark.parametrize("epsilon", [2.5, None])
def test_json_keeps_a_record(epsilon):
    spend = PrivacySpend(epsilon=epsilon, delta=1e-5, unit="subject", accountant="prv")
    made = ComponentRecord("c", 3, 1, "gift", "b", "r", spend, secure_randomness=False, space="weight")
    assert ComponentRecord.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_base_spec_is_plain_json():
    made = BaseSpec(model="deit_tiny_patch16_224", num_classes=10, args={"img_size": 64})
    assert BaseSpec(**json.loads(json.dumps(made.to_json()))) == made
