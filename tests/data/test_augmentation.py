"""Fixed augmentations: constants that nothing but their number decides."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from privshard.data.augmentation import Augmentation, Copies, describe, fixed_augmentations

PIXELS = np.arange(12 * 8 * 3, dtype=np.uint8).reshape(8, 12, 3)


def as_tensor(image):
    return torch.from_numpy(np.array(image.resize((4, 4), Image.Resampling.NEAREST))).permute(2, 0, 1).float()


def test_they_are_fixed_for_good():
    found = fixed_augmentations(3, flips=True)
    assert found[:2] == fixed_augmentations(2, flips=True)
    assert [item.mirrored for item in found] == [True, False, True]
    assert not any(item.mirrored for item in fixed_augmentations(3, flips=False))
    rounded = [round(value, 6) for value in (found[0].left, found[0].top, found[0].right, found[0].bottom)]
    assert rounded == [0.073307, 0.121965, 0.888486, 0.976951]


def test_crops_stay_inside_and_are_large():
    for item in fixed_augmentations(64, flips=True):
        assert 0 <= item.left < item.right <= 1
        assert 0 <= item.top < item.bottom <= 1
        assert item.right - item.left >= 0.75
        assert item.bottom - item.top >= 0.75
    assert len({item.left for item in fixed_augmentations(64, flips=True)}) == 64


def test_an_augmentation_crops_and_mirrors():
    image = Image.fromarray(PIXELS)
    found = np.asarray(Augmentation(0.25, 0.5, 1.0, 1.0, mirrored=True)(image))
    assert (found == PIXELS[4:, 3:][:, ::-1]).all()
    assert (np.asarray(Augmentation(0, 0, 1, 1, mirrored=False)(image)) == PIXELS).all()
    dot = Image.fromarray(PIXELS[:1, :1])
    assert all(item(dot).size == (1, 1) for item in fixed_augmentations(8, flips=True))


def test_copies_start_with_the_image_itself():
    image = Image.fromarray(PIXELS)
    augmentations = fixed_augmentations(2, flips=True)
    found = Copies(as_tensor, augmentations)(image)
    assert found.shape == (3, 3, 4, 4)
    assert torch.equal(found[0], as_tensor(image))
    for row, augmentation in zip(found[1:], augmentations, strict=True):
        assert torch.equal(row, as_tensor(augmentation(image)))


def test_the_description_tells_them_apart():
    texts = {describe(number, flips=flips) for number in (1, 2) for flips in (True, False)}
    assert len(texts) == 4
    assert describe(0, flips=True) == describe(0, flips=False) == ""
