"""The picture has every cell where it belongs, and draws nothing where a map is zero."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from privshard.report import map_grid
from privshard.report.map_grid import CELL, ImageMaps


def _item(*, mask: bool) -> ImageMaps:
    before, after = np.zeros((2, 3, 32, 32)), np.zeros((2, 3, 32, 32))
    after[1, 2, 8:24, 8:24] = 1.0
    mask_HW = np.zeros((32, 32), dtype=bool)
    mask_HW[4:12, 4:12] = True
    return ImageMaps(
        name="a very long name that does not fit beside the picture.png",
        image_HW3=np.full((32, 32, 3), 128, dtype=np.uint8),
        before_KLHW=before,
        after_KLHW=after,
        mask_HW=mask_HW if mask else None,
        iou_before_KL=np.zeros((2, 3)) if mask else None,
        iou_after_KL=np.full((2, 3), 0.5) if mask else None,
    )


def _pixels(*items: ImageMaps) -> np.ndarray:
    png = map_grid.map_grid(
        items, columns=["block 0", "block 1", "block 2"], clusters=["cluster 4", "cluster 1"], title="Maps of $x$"
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def _cell(pixels: np.ndarray, *, row: int, place: int, column: int) -> np.ndarray:
    left = map_grid._MARGIN + map_grid._IMAGE + map_grid._LEFT + column * (CELL + map_grid._GAP)
    pair = 2 * CELL + map_grid._GAP + map_grid._PAIR_GAP
    top = map_grid._HEAD + row * pair + place * (CELL + map_grid._GAP)
    return pixels[top : top + CELL, left : left + CELL]


def test_every_map_is_in_its_cell():
    pixels = _pixels(_item(mask=False))
    for row in range(2):
        for place in range(2):
            for column in range(3):
                cell = _cell(pixels, row=row, place=place, column=column)
                coloured = (cell.max(-1) - cell.min(-1) > 30).mean()
                expected = 0.25 if (row, place, column) == (1, 1, 2) else 0.0
                assert coloured == pytest.approx(expected, abs=0.01), (row, place, column)
    middle = _cell(pixels, row=1, place=1, column=2)[CELL // 2, CELL // 2]
    assert middle[0] > middle[2] + 100


def test_an_outline_and_numbers_appear_with_a_mask_alone():
    with_mask, without = _pixels(_item(mask=True)), _pixels(_item(mask=False))
    cyan = (with_mask == map_grid._OUTLINE).all(-1)
    assert _cell(cyan[..., None], row=0, place=0, column=0).sum() > 50
    assert not (without == map_grid._OUTLINE).all(-1).any()
    for place in range(2):
        corner = _cell(with_mask, row=0, place=place, column=0)[-14:, -26:]
        assert (corner < 120).all(-1).sum() > 50
        assert (_cell(without, row=0, place=place, column=0)[-14:, -26:] > 120).all()


def test_images_stand_below_each_other_and_the_bytes_repeat():
    one, two = _pixels(_item(mask=True)), _pixels(_item(mask=True), _item(mask=True))
    assert two.shape[1] == one.shape[1]
    assert two.shape[0] > 1.8 * (one.shape[0] - map_grid._HEAD - map_grid._FOOT)
    assert np.array_equal(two, _pixels(_item(mask=True), _item(mask=True)))


@pytest.mark.parametrize("size", [7, 32, 300])
def test_resizing_a_map_keeps_its_values(size):
    values = np.random.default_rng(0).random((32, 32))
    resized = map_grid._resized_map(values, size)
    assert resized.shape == (size, size)
    assert np.isin(resized, values).all()
