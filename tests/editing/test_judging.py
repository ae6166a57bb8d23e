"""Measures, groups, fronts and the search: against loops, and that perfect is 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privshard.core.errors import InputError
from privshard.editing.front import area, area_interval, difference_interval
from privshard.editing.groups import error_groups, split_groups
from privshard.editing.learn import LearnOptions, learn
from privshard.editing.masks import everything
from privshard.editing.measure import Measures, measure, sensitive
from privshard.editing.search import greedy_search


def test_sensitive_examples_are_right_and_unsure():
    logits = torch.tensor([[1.0, 1.01], [1.0, 1.01], [5.0, 0.0], [0.0, 0.05]])
    assert sensitive(logits, torch.tensor([1, 0, 0, 1])).tolist() == [True, False, False, True]
    assert not sensitive(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)).any()


def test_measures_reach_one_and_fall(tiny):
    masks = everything(tiny.slots, like=tiny.tokens)
    learnt = learn(
        tiny.tail,
        tiny.tokens[:2],
        tiny.labels[:2],
        masks,
        tiny.slots,
        together=True,
        options=LearnOptions(lr=1e-2, loss_below=0.3),
    )
    with torch.no_grad():
        before = tiny.tail.logits(tiny.tokens, {}).argmax(1)
    pair = (tiny.tokens[:2], tiny.labels[:2])
    nothing = {name: torch.zeros_like(delta) for name, delta in learnt.moved.items()}
    after = measure(
        tiny.tail, learnt.moved, edited=pair, likes=pair, sensitive_tokens=tiny.tokens[:2], sensitive_before=before[:2]
    )
    kept = measure(tiny.tail, nothing, edited=pair, likes=pair, sensitive_tokens=tiny.tokens, sensitive_before=before)
    none = measure(
        tiny.tail,
        nothing,
        edited=pair,
        likes=(tiny.tokens[:0], tiny.labels[:0]),
        sensitive_tokens=tiny.tokens[:0],
        sensitive_before=before[:0],
    )
    assert after == Measures(1.0, 1.0, 0.0)
    assert kept == Measures(0.0, 0.0, 1.0)
    assert (none.generalization, none.locality) == (None, None)


def test_error_groups_are_those_of_a_count():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(4, size=200), rng.integers(4, size=200)
    groups = error_groups(labels, predictions, least=12)
    pairs = list(zip(labels.tolist(), predictions.tolist(), strict=True))
    expected = {pair for pair in set(pairs) if pair[0] != pair[1] and pairs.count(pair) >= 12}
    assert {(group.label, group.prediction) for group in groups} == expected
    assert all([pairs[row] for row in g.rows] == [(g.label, g.prediction)] * len(g.rows) for g in groups)
    assert [len(g.rows) for g in groups] == sorted((len(g.rows) for g in groups), reverse=True)
    with pytest.raises(InputError, match="at least 2"):
        error_groups(labels, predictions, least=1)


def test_groups_to_tune_on_share_no_label_with_those_reported():
    labels = np.repeat(np.arange(12), 10)
    groups = error_groups(labels, (labels + np.tile([1, 2], 60)) % 12, least=5)
    for seed in range(20):
        tuned, reported = split_groups(groups, validation=4, test=8, seed=seed)
        assert (len(tuned), len(reported)) == (4, 8)
        assert not {g.label for g in tuned} & {g.label for g in reported}
    with pytest.raises(InputError, match="expected 30 to report"):
        split_groups(groups, validation=4, test=30, seed=0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6))
def test_the_area_is_the_share_of_a_grid_that_is_dominated(points):
    hit = sum(any(x < a and y < b for a, b in points) for x in range(6) for y in range(6))
    assert area(np.array(points) / 6) == pytest.approx(hit / 36)


def test_a_perfect_method_has_area_one():
    assert area_interval(np.ones((5, 3, 2)), draws=50, seed=0).value == 1.0


def test_intervals_are_paired_over_groups():
    rng = np.random.default_rng(0)
    theirs = rng.random((40, 3, 2)) * 0.8
    ours = theirs + 0.05
    found = difference_interval(ours, theirs, draws=500, seed=1)
    assert found.low > 0
    assert found.low < found.value < found.high
    assert difference_interval(ours, ours, draws=50, seed=1).high == 0.0
    assert (
        area_interval(theirs, draws=500, seed=1).high - area_interval(theirs, draws=500, seed=1).low
        > found.high - found.low
    )
    with pytest.raises(InputError, match="the same groups"):
        difference_interval(ours, theirs[1:], draws=5, seed=0)


def test_the_search_finds_a_planted_place_and_grows_only_while_it_helps():
    def evaluate(places):
        good = sum(place.kind == "ffn" and place.block in (3, 4, 5) for place in places)
        helped = any(str(place) == "attention:2" for place in places)
        return Measures(1.0, 0.2 * good + 0.1 * helped, 0.9 - 0.1 * (len(places) > 6))

    chosen, tried = greedy_search(evaluate, blocks=range(8), group=3)
    assert {str(place) for place in chosen} >= {"ffn:3", "ffn:4", "ffn:5", "attention:2"}
    assert max(tried, key=lambda candidate: candidate.score).places == chosen
    front = [c for c in tried if c.on_front]
    assert all(not (a.generalization > b.generalization and a.locality > b.locality) for a in tried for b in front)
    alone, _ = greedy_search(lambda places: Measures(1.0, 0.5, 1 / len(places)), blocks=range(8), group=3)
    assert len(alone) == 3


def test_a_search_without_likes_is_refused():
    with pytest.raises(InputError, match="groups of at least two images"):
        greedy_search(lambda places: Measures(1.0, None, 1.0), blocks=[0])
