"""Batches: functions of seed, phase and step; every row once an epoch; augmentation as it says."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from privshard.decomposition.batches import Augmentation, Batches, augment


def make(**changes) -> Batches:
    pixels = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 4), np.uint8)
    settings = {
        "train_rows": np.arange(17),
        "eval_rows": np.array([19, 18]),
        "batch_size": 4,
        "mean": (0.0,) * 3,
        "std": (1 / 255,) * 3,
        "seed": 0,
    }
    return Batches(pixels, np.arange(20), **{**settings, **changes})


def test_every_training_row_comes_at_most_once_an_epoch_and_pixels_stay_with_labels():
    batches = make()
    for epoch in range(3):
        seen = []
        for place in range(4):
            images, labels = batches.train(0, 4 * epoch + place)
            assert torch.equal(images[:, 0, 0, 0].round().long(), labels)
            seen += labels.tolist()
        assert len(set(seen)) == 16
        assert max(seen) < 17


def test_batches_depend_on_seed_phase_and_step_alone():
    first = make().train(1, 3)[1]
    assert torch.equal(make().train(1, 3)[1], first)
    others = [make().train(0, 3)[1], make().train(1, 2)[1], make(seed=1).train(1, 3)[1]]
    assert not any(torch.equal(first, other) for other in others)


def test_held_out_rows_come_in_order_and_normalized():
    ((images, labels),) = make(mean=(0.5,) * 3, std=(0.25,) * 3).held_out()
    assert labels.tolist() == [19, 18]
    torch.testing.assert_close(images[0, 0, 0, 0], torch.tensor((19 / 255 - 0.5) / 0.25))


def test_a_batch_is_never_larger_than_the_rows():
    assert len(make(batch_size=100).train(0, 5)[1]) == 17


def test_shifts_are_crops_of_the_padded_image():
    images = torch.randn(50, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    found = augment(images, Augmentation(crop=2), torch.Generator().manual_seed(1))
    padded = F.pad(images, (2, 2, 2, 2))
    shifts = set()
    for index, image in enumerate(found):
        places = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(image, padded[index, :, row : row + 6, column : column + 5])
        ]
        assert len(places) == 1
        shifts.add(places[0])
    assert len(shifts) > 10


def test_about_half_of_the_images_are_mirrored():
    images = torch.randn(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = augment(images, Augmentation(flip=True), torch.Generator().manual_seed(1))
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(found, images, strict=True)]
    same = [torch.equal(new, old) for new, old in zip(found, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130
