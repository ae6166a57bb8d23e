"""The linear-trend analysis: planted lines, explicit W_q^T W_k, and what chance gives."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from tiny_decompositions import state_of, swin, vit

from privshard.core.errors import InputError
from privshard.decomposition.trend import _of_gram, _products, linear_trends


def by_svd(blocks: np.ndarray) -> tuple[np.ndarray, float]:
    """Scores of the first principal component of unit vectors, and R² of the line, from the vectors themselves."""
    unit = blocks / np.linalg.norm(blocks, axis=1, keepdims=True)
    left, size, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    scores = left[:, 0] * size[0]
    return scores, np.corrcoef(scores, np.arange(len(blocks)))[0, 1] ** 2


def test_a_kinds_trend_is_that_of_its_flattened_unit_vectors():
    state = state_of(vit(5))
    (found,) = linear_trends(state, heads={"blocks": 3})
    for kind in found.kinds:
        if "QK" in kind.name or ".v." in kind.name:
            continue
        blocks = np.stack([state[f"blocks.{block}.{kind.name}"].ravel() for block in range(5)])
        scores, r2 = by_svd(blocks.astype(float))
        assert kind.r2 == pytest.approx(r2, abs=1e-9)
        np.testing.assert_allclose(np.abs(kind.scores), np.abs(scores), atol=1e-7)
    assert {"attn.QKᵀ", "attn.v.weight", "attn.v.bias"} <= {kind.name for kind in found.kinds}
    stacked = np.array([kind.scores for kind in found.kinds]).T
    left, size, _ = np.linalg.svd(stacked - stacked.mean(axis=0))
    assert found.overall.r2 == pytest.approx(np.corrcoef(left[:, 0], np.arange(5))[0, 1] ** 2, abs=1e-9)
    assert found.overall.explained == pytest.approx(size[0] ** 2 / (size**2).sum())


def test_queries_and_keys_enter_as_their_products():
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 4, 12, 8))
    products = [
        np.concatenate([(q[h : h + 4].T @ k[h : h + 4]).ravel() for h in (0, 4, 8)])
        for q, k in zip(query, key, strict=True)
    ]
    np.testing.assert_allclose(_products(query, key, 3), np.array(products) @ np.array(products).T, atol=1e-10)


def test_queries_and_keys_that_turn_together_change_nothing():
    state = state_of(vit(4))
    (before,) = linear_trends(state, heads={"blocks": 3})
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))
    for head in (slice(0, 8), slice(24, 32)):  # the first head's queries and keys, of width 8
        state["blocks.2.attn.qkv.weight"][head] = turn @ state["blocks.2.attn.qkv.weight"][head]
    (after,) = linear_trends(state, heads={"blocks": 3})
    assert after.overall.r2 == pytest.approx(before.overall.r2, abs=1e-5)


def test_blocks_on_a_line_have_r2_one():
    state, line = state_of(vit(6)), state_of(vit(6))
    for name in [name for name in state if name.startswith("blocks.0.")]:
        near, far = 100 + 0 * state[name], state[name]  # nearly straight after scaling to length 1
        for block in range(6):
            line[name.replace("blocks.0.", f"blocks.{block}.")] = near + block * far * 0.01
    (found,) = linear_trends(line, heads={"blocks": 3})
    assert all(kind.r2 > 0.999 for kind in found.kinds)
    assert found.overall.r2 > 0.999
    assert list(found.overall.scores) == sorted(found.overall.scores)


def test_random_orders_have_one_over_blocks_minus_one_on_average():
    gram = np.random.default_rng(0).standard_normal((4, 30))
    values = [_of_gram("x", (gram[list(p)]) @ gram[list(p)].T).r2 for p in permutations(range(4))]
    assert np.mean(values) == pytest.approx(1 / 3, abs=1e-9)
    (found,) = linear_trends(state_of(vit(4)), heads={"blocks": 3})
    assert found.to_json()["r2_by_chance"] == pytest.approx(1 / 3)


def test_a_swin_has_a_trend_for_each_stage_and_none_for_two_blocks():
    found = linear_trends(state_of(swin()), heads={f"layers.{i}.blocks": h for i, h in enumerate((1, 2, 2, 2))})
    assert [(trend.depth, trend.overall.r2 is None) for trend in found] == [(2, True), (2, True), (4, False), (2, True)]


def test_blocks_that_do_not_differ_have_no_trend():
    state = state_of(vit(4))
    for name in [name for name in state if name.startswith("blocks.0.")]:
        for block in range(4):
            state[name.replace("blocks.0.", f"blocks.{block}.")] = state[name]
    (found,) = linear_trends(state, heads={"blocks": 3})
    assert found.overall.r2 is None
    assert all(kind.r2 is None and kind.explained is None for kind in found.kinds)


@pytest.mark.parametrize("heads", [{}, {"blocks": 5}])
def test_heads_that_do_not_divide_are_refused(heads):
    with pytest.raises(InputError, match="expected attention heads that divide 24 rows"):
        linear_trends(state_of(vit(3)), heads=heads)
