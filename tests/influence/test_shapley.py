"""Shapley values against the mean over all orders in which components can join."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import shapley_by_orders

from privshard.core.errors import InputError
from privshard.core.model import Composition
from privshard.influence import shapley
from privshard.influence.values import accuracy_value, true_logit_value

UNEQUAL = {"c00": 0.5, "c01": 0.1, "c02": 0.15, "c03": 0.25}


def _logits(evidence, members):
    dropped = {name for index, name in enumerate(evidence.ids) if index not in members}
    weights = Composition("", evidence.weights).without(dropped).weights
    return evidence.base_logits_BC + sum(weight * evidence.component_logits[name] for name, weight in weights.items())


def _accuracy(evidence):
    return lambda members: float((_logits(evidence, members).argmax(1) == evidence.labels_B).mean())


def _true_logit(evidence):
    rows = np.arange(len(evidence.labels_B))
    return lambda members: float(_logits(evidence, members)[rows, evidence.labels_B].mean())


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_closed_form_agrees_with_all_orders_for_every_logit(count):
    z_SC = np.random.default_rng(count).standard_normal((count, 3))
    found = shapley.mean_game(z_SC)
    for column in range(3):
        game = lambda members, c=column: float(z_SC[list(members), c].mean()) if members else 0.0  # noqa: E731
        np.testing.assert_allclose(found[:, column], shapley_by_orders(game, count), rtol=1e-12, atol=1e-13)


def test_closed_form_shares_out_the_mean_and_treats_equals_equally():
    z_S = np.array([0.3, 0.3, -2.0, 5.0])
    found = shapley.mean_game(z_S)
    assert found.sum() == pytest.approx(z_S.mean(), rel=1e-14)
    assert found[0] == found[1]
    assert shapley.mean_game(np.full(5, 2.0)).tolist() == [0.4] * 5
    assert shapley.mean_game(np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("weights", [None, UNEQUAL])
@pytest.mark.parametrize(("fast", "slow"), [(accuracy_value, _accuracy), (true_logit_value, _true_logit)])
def test_exact_agrees_with_all_orders(make_evidence, weights, fast, slow):
    evidence = make_evidence(4, weights=weights)
    found = shapley.exact(fast(evidence), evidence.coalition_weights, num_components=4)
    np.testing.assert_allclose(found.values_S, shapley_by_orders(slow(evidence), 4), rtol=1e-12, atol=1e-13)
    assert (found.method, found.num_coalitions) == ("exact", 16)


def test_exact_agrees_with_the_closed_form_for_the_plain_mean(make_evidence):
    evidence = make_evidence(7)
    found = shapley.exact(true_logit_value(evidence), evidence.coalition_weights, num_components=7)
    z_S = evidence.z_SBC[:, np.arange(40), evidence.labels_B].mean(axis=1)
    np.testing.assert_allclose(found.values_S, shapley.mean_game(z_S), rtol=1e-11, atol=1e-13)


def test_accuracy_of_coalitions_does_not_depend_on_chunks(make_evidence, monkeypatch):
    evidence = make_evidence(6)
    whole = shapley.exact(accuracy_value(evidence), evidence.coalition_weights, num_components=6)
    monkeypatch.setattr("privshard.influence.values.CHUNK_LOGITS", 500)
    parts = shapley.exact(accuracy_value(evidence), evidence.coalition_weights, num_components=6)
    np.testing.assert_array_equal(whole.values_S, parts.values_S)


@pytest.mark.parametrize("weights", [None, {f"c{index:02d}": float(index + 1) for index in range(8)}])
def test_sampled_orders_agree_with_exact_values(make_evidence, weights):
    evidence = make_evidence(8, rows=60, weights=weights)
    value = accuracy_value(evidence)
    exact = shapley.exact(value, evidence.coalition_weights, num_components=8)
    rng = np.random.default_rng(1)
    found = shapley.antithetic(value, evidence.coalition_weights, num_components=8, num_pairs=400, rng=rng)
    assert (found.half_width_S > 0).all()
    assert (np.abs(found.values_S - exact.values_S) < 2 * found.half_width_S).all()
    assert found.values_S.sum() == pytest.approx(exact.values_S.sum(), abs=1e-12)


def test_intervals_cover_the_exact_values_as_often_as_they_say(make_evidence):
    evidence = make_evidence(6, rows=30)
    value = accuracy_value(evidence)
    exact = shapley.exact(value, evidence.coalition_weights, num_components=6)
    covered = [
        np.abs(found.values_S - exact.values_S) <= found.half_width_S
        for seed in range(100)
        for found in [
            shapley.antithetic(
                value,
                evidence.coalition_weights,
                num_components=6,
                num_pairs=40,
                rng=np.random.default_rng(seed),
            )
        ]
    ]
    assert 0.90 < np.mean(covered) < 0.99


def test_interval_is_normal_over_the_means_of_pairs(make_evidence):
    evidence = make_evidence(4, weights=UNEQUAL)
    value, rng = _accuracy(evidence), np.random.default_rng(7)
    means = []
    for _ in range(5):
        gains = np.zeros(4)
        order = rng.permutation(4).tolist()
        for joining in (order, order[::-1]):
            for place, player in enumerate(joining):
                before = frozenset(joining[:place])
                gains[player] += (value(before | {player}) - value(before)) / 2
        means.append(gains)
    found = shapley.antithetic(
        accuracy_value(evidence),
        evidence.coalition_weights,
        num_components=4,
        num_pairs=5,
        rng=np.random.default_rng(7),
    )
    np.testing.assert_allclose(found.values_S, np.mean(means, axis=0), rtol=0, atol=1e-14)
    expected = 1.96 * np.std(means, axis=0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found.half_width_S, expected, rtol=1e-3, atol=1e-14)


def test_a_pair_of_orders_settles_what_depends_on_the_place_alone(make_evidence):
    evidence = make_evidence(6)
    found = shapley.antithetic(
        lambda weights_MS: np.count_nonzero(weights_MS, axis=1) ** 2.0,
        evidence.coalition_weights,
        num_components=6,
        num_pairs=2,
        rng=np.random.default_rng(0),
    )
    assert found.values_S.tolist() == [6.0] * 6
    assert found.half_width_S.tolist() == [0.0] * 6


def test_sampling_is_a_function_of_the_generator(make_evidence):
    evidence = make_evidence(5)
    runs = [
        shapley.antithetic(
            accuracy_value(evidence),
            evidence.coalition_weights,
            num_components=5,
            num_pairs=10,
            rng=np.random.default_rng(seed),
        ).values_S.tolist()
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_too_many_components_and_too_few_pairs_are_refused(make_evidence):
    evidence = make_evidence(2)
    with pytest.raises(InputError, match="at most 20 components, got 21"):
        shapley.exact(accuracy_value(evidence), evidence.coalition_weights, num_components=21)
    with pytest.raises(InputError, match="num_pairs: expected at least 2, got 1"):
        shapley.antithetic(
            accuracy_value(evidence),
            evidence.coalition_weights,
            num_components=2,
            num_pairs=1,
            rng=np.random.default_rng(0),
        )
