"""The part of a base's eval transform that moves pixels, resize and crop, for images to show and for masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import timm.data
from PIL.Image import Image


def seen_pixels(image: Image, config: Mapping[str, Any], *, nearest: bool = False) -> np.ndarray:
    """What a base sees of an RGB image, as bytes (H, W, 3) at its input size.

    config: `Base.transform_config`. nearest: no interpolation, for masks; a pixel keeps a value that was in the image.
    """
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    chosen = {**config, **plain, **({"interpolation": "nearest"} if nearest else {})}
    tensor_3HW: Any = timm.data.create_transform(**chosen, is_training=False)(image)  # pyright: ignore
    return np.rint(tensor_3HW.permute(1, 2, 0).clamp(0, 1).numpy() * 255).astype(np.uint8)
