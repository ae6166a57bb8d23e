"""The averaging error against a loop; which models a composition runs, and when arithmetic is enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from privshard.composition.approximation import averaging_error
from privshard.composition.average import average
from privshard.composition.displacements import compose
from privshard.composition.members import arithmetic, members
from privshard.core.displacement import Displacement
from privshard.core.errors import InputError
from privshard.core.model import Composition
from privshard.store.objects import ObjectStore
from privshard.store.tensors import save_tensors

EDITED = Composition("b", {"c0": 0.25, "c1": 0.75, "edit": 2.0}, frozenset({"edit"}))


def test_the_error_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    averaged, ensemble, base = rng.standard_normal((3, 7, 4))
    labels = rng.integers(0, 4, 7)
    found = averaging_error(averaged, ensemble, base, labels)
    distances = [math.dist(a, e) for a, e in zip(averaged, ensemble, strict=True)]
    changes = [math.dist(e, b) for e, b in zip(ensemble, base, strict=True)]
    assert found["mean_logit_difference"] == pytest.approx(sum(distances) / 7)
    assert found["max_logit_difference"] == pytest.approx(max(distances))
    assert found["relative"] == pytest.approx(sum(distances) / sum(changes))
    same = [max(range(4), key=a.__getitem__) == max(range(4), key=e.__getitem__) for a, e in zip(averaged, ensemble)]  # noqa: B905
    assert found["agreement"] == pytest.approx(sum(same) / 7)
    right = [max(range(4), key=e.__getitem__) == label for e, label in zip(ensemble, labels, strict=True)]
    assert found["ensemble_accuracy"] == pytest.approx(sum(right) / 7)


def test_no_rows_and_no_change_tell_nothing():
    none = averaging_error(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, dtype=int))
    assert [none[key] for key in ("mean_logit_difference", "max_logit_difference", "relative", "agreement")] == [
        None
    ] * 4
    still = averaging_error(np.ones((1, 2)), np.ones((1, 2)), np.ones((1, 2)), np.zeros(1, dtype=int))
    assert (still["mean_logit_difference"], still["relative"]) == (0.0, None)


def test_an_average_is_one_model_and_an_ensemble_one_a_component():
    assert members(EDITED) == [(1.0, {"c0": 0.25, "c1": 0.75, "edit": 2.0})]
    ensemble = Composition(EDITED.base, EDITED.weights, EDITED.added, "ensemble")
    assert members(ensemble) == [(0.25, {"c0": 1.0, "edit": 2.0}), (0.75, {"c1": 1.0, "edit": 2.0})]
    assert members(ensemble.without({"c0", "c1"})) == [(1.0, {"edit": 2.0})]
    assert members(Composition("b", {})) == [(1.0, {})]


def test_when_logits_follow_from_those_of_the_components():
    average_of_two = Composition.uniform("b", ["c0", "c1"])
    assert arithmetic(average_of_two, linear=True)
    assert not arithmetic(average_of_two, linear=False)
    assert arithmetic(Composition.uniform("b", ["c0", "c1"], combine="ensemble"), linear=False)
    assert arithmetic(Composition.uniform("b", ["c0"]), linear=False)
    assert not arithmetic(Composition("b", {"c0": 0.5}), linear=False)
    assert arithmetic(Composition("b", {}), linear=False)
    assert not arithmetic(EDITED, linear=False)


@pytest.mark.parametrize("weights", [(0.5, 0.25), (1.5, -0.5), (2.0, -1.0)])
def test_prompts_are_averaged_and_nothing_else(tmp_path, weights):
    store, arrays = ObjectStore(str(tmp_path)), {"prompts.0": np.ones((2, 3), np.float32)}
    for name in ("c0", "c1"):
        save_tensors(store, f"{name}.safetensors", arrays, {"base": "b", "space": "prompt"})
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("c0", "c1")}
    one = Displacement({"prompts.0": torch.ones(2, 3)}, base="b", space="prompt")
    np.testing.assert_array_equal(average(paths, {"c0": 0.25, "c1": 0.75})["prompts.0"], arrays["prompts.0"])
    assert compose([one, one]).tensors["prompts.0"].tolist() == one.tensors["prompts.0"].tolist()
    with pytest.raises(InputError, match=r"sum 1.*averaged, but not scaled"):
        average(paths, dict(zip(("c0", "c1"), weights, strict=True)))
    with pytest.raises(InputError, match="averaged, but not scaled"):
        compose([one, one], weights=weights)
