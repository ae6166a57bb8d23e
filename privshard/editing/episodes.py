"""Episodes: an image, and the same image with a patch of another one in it, which the model should not mind.

B images of a batch; sides are in cells of the base's patch grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from privshard.core.errors import InputError

# The range of sides, as shares of the image's: 48 to 128 of 224 pixels.
SMALLEST, LARGEST = 48 / 224, 128 / 224


def cutmix(images: Tensor, *, patch_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Each image (B, 3, H, W) with a square of the next one's pixels, at the same place, aligned to the patch grid.

    The order of donors and the squares are drawn from `generator` (on the CPU). An image is never its own donor:
    InputError for fewer than two.
    """
    num, height, width = len(images), images.shape[2], images.shape[3]
    if num < 2:
        raise InputError(f"episodes: expected at least two images to mix, got {num}.")
    rows, columns = height // patch_size[0], width // patch_size[1]
    grid = min(rows, columns)
    low = max(1, round(SMALLEST * grid))
    high = max(low, min(round(LARGEST * grid), grid))
    order = torch.randperm(num, generator=generator)
    donor_of = torch.empty_like(order)
    donor_of[order] = order.roll(1)
    mixed = images.clone()
    for at in range(num):
        side = int(torch.randint(low, high + 1, (), generator=generator))
        top = int(torch.randint(rows - side + 1, (), generator=generator)) * patch_size[0]
        left = int(torch.randint(columns - side + 1, (), generator=generator)) * patch_size[1]
        box = (slice(None), slice(top, top + side * patch_size[0]), slice(left, left + side * patch_size[1]))
        mixed[at][box] = images[int(donor_of[at])][box]
    return mixed
