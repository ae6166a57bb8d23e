"""Scores against loops over pixels; a map is never scored on the images that chose it."""

from __future__ import annotations

import pytest
import torch

from privshard.adaptation.gift import localization as scores
from privshard.adaptation.gift.maps import pixel_maps, random_maps
from privshard.adaptation.gift.planted import SHAPES, planted_images
from privshard.core.errors import InputError


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 4, 6, 5, generator=generator), torch.rand(3, 6, 5, generator=generator) > 0.6


def test_pointing_asks_whether_the_strongest_pixel_is_inside(case):
    found, masks = case
    hits = scores.pointing_hits(found, masks)
    for b in range(3):
        for m in range(4):
            best = max((float(found[b, m, y, x]), y, x) for y in range(6) for x in range(5))
            assert bool(hits[b, m]) == bool(masks[b, best[1], best[2]])
    assert not scores.pointing_hits(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)).any()


def test_intersection_over_union_counts_pixels(case):
    found, masks = case
    iou = scores.intersection_over_union(found, masks)
    for b in range(3):
        for m in range(4):
            cells = [(float(found[b, m, y, x]) >= 0.5, bool(masks[b, y, x])) for y in range(6) for x in range(5)]
            want = sum(on and inside for on, inside in cells) / sum(on or inside for on, inside in cells)
            assert float(iou[b, m]) == pytest.approx(want)
    nothing = scores.intersection_over_union(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
    assert float(nothing) == 0


def test_the_map_that_is_scored_was_chosen_on_other_images():
    masks = torch.ones(4, 1, 1, dtype=torch.bool)
    iou = torch.tensor([[1.0, 0.0], [0.25, 0.75], [1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    hits = torch.tensor([[True, False], [True, False], [True, False], [False, False]])
    # even images choose map 0, which the odd ones score 0.25 (hits 1 of 2); these choose map 1, which the even score 0
    found = scores.localization(hits, iou, masks)
    assert found.iou == pytest.approx(0.125)
    assert found.pointing == pytest.approx(0.25)
    assert found.best_iou == pytest.approx(0.875)
    assert (found.map, found.area, found.num_images) == (0, 1.0, 4)


def test_one_image_alone_chooses_nothing():
    found = scores.localization(torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2), torch.ones(1, 1, 1) > 0)
    assert (found.pointing, found.iou, found.map, found.best_iou) == (None, None, None, 1.0)


def test_random_maps_score_what_chance_does():
    planted = planted_images(60, size=32, seed=0)
    masks = torch.stack([torch.from_numpy(item.mask_HW) for item in planted])
    generator = torch.Generator().manual_seed(0)
    found = pixel_maps(random_maps(60, 40, grid=(8, 8), generator=generator), size=(32, 32))
    score = scores.localization(scores.pointing_hits(found, masks), scores.intersection_over_union(found, masks), masks)
    assert score.pointing == pytest.approx(score.area, abs=0.1)
    assert score.iou < 0.12 < score.best_iou


def test_no_image_is_refused():
    with pytest.raises(InputError, match="expected scores of images"):
        scores.localization(torch.zeros(0, 2) > 0, torch.zeros(0, 2), torch.zeros(0, 1, 1) > 0)


def test_spread_is_mean_and_deviation():
    assert scores.spread([1.0]) == (1.0, None)
    mean, deviation = scores.spread([1.0, 2.0, 3.0])
    assert (mean, deviation) == (2.0, pytest.approx(1.0))


def test_planted_objects_are_where_their_masks_say():
    found = planted_images(24, size=64, seed=3)
    assert [item.label for item in found[: len(SHAPES)]] == list(SHAPES)
    for item in found:
        assert item.image_HW3.shape == (64, 64, 3)
        assert 0.01 < item.mask_HW.mean() < 0.25
        inside, outside = item.image_HW3[item.mask_HW], item.image_HW3[~item.mask_HW]
        assert abs(inside.mean(0) - outside.mean(0)).max() > 0.2 * 255
        left, top, right, bottom = item.box
        assert item.mask_HW[top:bottom, left:right].sum() == item.mask_HW.sum()
        assert item.mask_HW[top].any()
        assert item.mask_HW[:, right - 1].any()


def test_planted_images_are_a_function_of_the_seed():
    one, again, other = (planted_images(2, size=32, seed=seed)[1].image_HW3 for seed in (0, 0, 1))
    assert (one == again).all()
    assert (one != other).any()
    with pytest.raises(InputError, match="at least 16 pixels, got 8"):
        planted_images(1, size=8, seed=0)
