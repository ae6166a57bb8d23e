"""Fixed augmentations: a few crops and mirrorings that are public constants, the same for every image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST_SIDE = 0.75


@dataclass(frozen=True)
class Augmentation:
    """A crop, in fractions of width and height, and whether it is mirrored left to right."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool

    def __call__(self, image: Image.Image) -> Image.Image:
        """The changed image; its size is the crop's, at least one pixel."""
        width, height = image.size
        left, top = int(self.left * width), int(self.top * height)
        box = (left, top, max(left + 1, round(self.right * width)), max(top + 1, round(self.bottom * height)))
        cropped = image.crop(box)
        return ImageOps.mirror(cropped) if self.mirrored else cropped


def fixed_augmentations(number: int, *, flips: bool) -> tuple[Augmentation, ...]:
    """The first `number` augmentations, always the same: crops of 3/4 to all of each side, every other one mirrored.

    They come from a hash of their number, not from data, time or a library's generator, so they are public constants
    and fixed for good. flips: False never mirrors, for images whose mirror image is of another class.

    >>> fixed_augmentations(2, flips=True)[1].mirrored, fixed_augmentations(2, flips=True)[0].mirrored
    (False, True)
    """
    found = []
    for index in range(number):
        width, height = (_SMALLEST_SIDE + (1 - _SMALLEST_SIDE) * _uniform(index, axis) for axis in ("width", "height"))
        left, top = (1 - width) * _uniform(index, "left"), (1 - height) * _uniform(index, "top")
        found.append(Augmentation(left, top, left + width, top + height, mirrored=flips and index % 2 == 0))
    return tuple(found)


def describe(number: int, *, flips: bool) -> str:
    """What the augmentations are, in the words that key a cache; "" for none.

    >>> describe(2, flips=False)
    'crops 1, 2'
    """
    return f"{'crops and flips' if flips else 'crops'} 1, {number}" if number else ""


class Copies:
    """A transform that gives every image as it is and in each augmentation: (1 + augmentations, 3, H, W)."""

    def __init__(self, transform: Callable[[Image.Image], Tensor], augmentations: Sequence[Augmentation]) -> None:
        self._transform, self._augmentations = transform, tuple(augmentations)

    def __call__(self, image: Image.Image) -> Tensor:
        """The image's copies, itself first."""
        import torch

        changed = [image, *(augmentation(image) for augmentation in self._augmentations)]
        return torch.stack([self._transform(item) for item in changed])


def _uniform(index: int, what: str) -> float:
    """A number from 0 to 1 that is a function of the augmentation's index."""
    digest = hashlib.sha256(f"privshard augmentation {index} {what}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
