"""Compositions that had to be run: kept with the held-out logits, and reached by every erasure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from privshard.core.errors import InputError
from privshard.core.model import Composition
from privshard.unlearning import eval_cache
from privshard.unlearning.eval_cache import EvalCache

CLASSES = ("cat", "dog", "eel")
BOTH = Composition.uniform("base", ["a", "b"])
ENSEMBLE = Composition.uniform("base", ["a", "b"], combine="ensemble")


def make_cache(rows: int = 5) -> EvalCache:
    rng = np.random.default_rng(0)
    logits = [rng.standard_normal((rows, 3)).astype(np.float32) for _ in range(4)]
    cache = EvalCache(
        ids=tuple(f"id{row}" for row in range(rows)),
        labels_B=rng.integers(0, 3, rows),
        base_BC=logits[0],
        component_logits={"a": logits[1], "b": logits[2]},
        linear=False,
    )
    return cache.with_model(BOTH, logits[3])


def test_a_composition_is_what_was_run_and_an_ensemble_is_arithmetic():
    cache = make_cache()
    np.testing.assert_array_equal(cache.logits(BOTH), cache.models[BOTH.digest].logits_BC)
    z = cache.component_logits
    np.testing.assert_allclose(cache.logits(ENSEMBLE), cache.base_BC + (z["a"] + z["b"]) / 2, rtol=1e-6)
    np.testing.assert_allclose(cache.logits(Composition.uniform("base", ["a"])), cache.base_BC + z["a"], rtol=1e-6)
    difference = np.linalg.norm(cache.logits(BOTH) - cache.logits(ENSEMBLE), axis=1)
    assert cache.metrics(BOTH, CLASSES)["averaging_error"]["mean_logit_difference"] == pytest.approx(difference.mean())
    assert "averaging_error" not in cache.metrics(ENSEMBLE, CLASSES)


def test_what_was_not_run_is_not_covered():
    other = Composition("base", {"a": 0.25, "b": 0.75})
    assert not make_cache().covers(other)
    with pytest.raises(InputError, match="privshard evaluate"):
        make_cache().logits(other)


def test_it_survives_the_file(world):
    cache = make_cache()
    eval_cache.save(world.workspace, cache)
    found = eval_cache.load(world.workspace)
    assert found is not None
    assert not found.linear
    assert found.models[BOTH.digest].composition == BOTH
    np.testing.assert_array_equal(found.logits(BOTH), cache.logits(BOTH))


def test_linear_components_may_have_compositions_that_were_run(world):
    curved = Composition.uniform("base", ["a", "b"], combine="curvature")
    cache = replace(make_cache(), linear=True, models={})
    assert not cache.covers(curved)
    assert cache.covers(BOTH)
    eval_cache.save(world.workspace, cache.with_model(curved, 2 * cache.base_BC))
    found = eval_cache.load(world.workspace)
    assert found is not None
    assert found.linear
    np.testing.assert_array_equal(found.logits(curved), 2 * cache.base_BC)
    assert "averaging_error" not in found.metrics(curved, CLASSES)
    alone = curved.without({"b"})
    np.testing.assert_allclose(found.logits(alone), cache.base_BC + cache.component_logits["a"], rtol=1e-6)


def test_erasing_rows_and_components_reaches_compositions(world):
    eval_cache.save(world.workspace, make_cache())
    eval_cache.erase_rows(world.workspace, keep=["id0", "id3"])
    found = eval_cache.load(world.workspace)
    np.testing.assert_array_equal(found.logits(BOTH), make_cache().logits(BOTH)[[0, 3]])
    eval_cache.keep_components(world.workspace, ["a"])
    left = eval_cache.load(world.workspace)
    assert left.models == {}
    assert left.components == {"a"}
    assert not left.linear
