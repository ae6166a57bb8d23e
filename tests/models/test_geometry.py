"""What a base sees of an image: the eval transform's resize and crop, and nothing else of it."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image

from privshard.models.geometry import seen_pixels


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_pixels_are_those_of_the_eval_transform(name):
    with torch.device("meta"):
        config = timm.data.resolve_model_data_config(timm.create_model(name))
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    tensor = timm.data.create_transform(**config, is_training=False)(image)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    want = ((tensor * std + mean) * 255).permute(1, 2, 0)
    found = seen_pixels(image, config)
    assert found.shape == (224, 224, 3)
    assert float((want - torch.from_numpy(found)).abs().max()) <= 0.51


def test_masks_keep_their_values_and_their_place():
    config = {
        "input_size": (3, 32, 32),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    mask = np.zeros((64, 64, 3), dtype=np.uint8)
    mask[20:40, 30:50] = 255
    found = seen_pixels(Image.fromarray(mask), config, nearest=True)
    assert set(np.unique(found)) == {0, 255}
    assert (found[10:20, 15:25] == 255).all()
    assert found.sum() == 255 * 3 * 100
