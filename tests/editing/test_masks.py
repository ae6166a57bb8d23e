"""Masks against sorting in a loop, and shares that keep nothing."""

from __future__ import annotations

import pytest
import torch

from privshard.core.errors import InputError
from privshard.editing.masks import gradient_scores, keep_top, magnitude_scores, random_scores, shared, split


@pytest.mark.parametrize("keep", [0.75, 0.5, 0.25, 0.1, 0.05])
def test_the_top_share_is_that_of_a_sorted_list(tiny, keep):
    total = sum(slot.size for slot in tiny.slots)
    values = torch.randint(0, 40, (3, total), generator=torch.Generator().manual_seed(1)).double()  # many ties
    masks = keep_top(split(values, tiny.slots), keep, tiny.slots)
    got = torch.cat([masks[slot.name] for slot in tiny.slots], dim=1)
    for row in range(3):
        chosen = sorted(range(total), key=lambda at, row=row: (-float(values[row, at]), at))[: round(keep * total)]
        assert got[row].nonzero()[:, 0].tolist() == sorted(chosen)


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, 1e-5, float("nan")])
def test_a_share_that_keeps_nothing_is_refused(tiny, keep):
    with pytest.raises(InputError, match="keeps at least one of"):
        keep_top(magnitude_scores(tiny.tail, tiny.slots, num=1), keep, tiny.slots)


def test_scores_are_norms_of_neurons(tiny):
    weights, gradient = (
        magnitude_scores(tiny.tail, tiny.slots, num=2),
        gradient_scores(tiny.tail, tiny.tokens, tiny.labels, tiny.slots),
    )
    fc1, fc2 = tiny.view.blocks[1].fc1.weight, tiny.view.blocks[1].fc2.weight
    torch.testing.assert_close(weights["blocks.1.mlp.fc1.weight"][1], torch.stack([row.norm() for row in fc1]))
    torch.testing.assert_close(weights["blocks.1.mlp.fc2.weight"][1], torch.stack([column.norm() for column in fc2.T]))
    assert {name: tuple(score.shape) for name, score in gradient.items()} == {s.name: (4, s.size) for s in tiny.slots}
    for at in range(4):
        named = {slot.name: torch.zeros(1, *slot.shape, dtype=torch.float64).requires_grad_() for slot in tiny.slots}
        logits = tiny.tail.logits(tiny.tokens[at : at + 1], named)
        torch.nn.functional.cross_entropy(logits, tiny.labels[at : at + 1]).backward()
        for slot in tiny.slots:
            whole = named[slot.name].grad[0] if slot.axis == 0 else named[slot.name].grad[0].T
            expected = torch.stack([neuron.norm() for neuron in whole])
            torch.testing.assert_close(gradient[slot.name][at], expected, rtol=1e-8, atol=1e-12)


def test_an_edit_of_several_images_has_their_mean_scores(tiny):
    scores = random_scores(tiny.slots, num=3, generator=torch.Generator().manual_seed(0))
    for name, score in shared(scores).items():
        torch.testing.assert_close(score, ((scores[name][0] + scores[name][1] + scores[name][2]) / 3).unsqueeze(0))


def test_random_scores_differ_between_edits(tiny):
    scores = random_scores(tiny.slots, num=2, generator=torch.Generator().manual_seed(0))
    assert all(not torch.equal(score[0], score[1]) for score in scores.values())
