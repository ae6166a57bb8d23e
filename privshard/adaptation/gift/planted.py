"""Images with planted objects: a shape of its own texture on a textured background, with the mask of where it is.

Nothing but a seed is needed, so that localization can be measured anywhere, against masks that are exact.

H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from privshard.core.errors import InputError

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Planted:
    """One image (H, W, 3) of bytes, the mask (H, W) of its object, and its label."""

    image_HW3: np.ndarray
    mask_HW: np.ndarray
    label: str

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the smallest box, in pixels; the last two are the first ones outside."""
        rows, columns = np.flatnonzero(self.mask_HW.any(1)), np.flatnonzero(self.mask_HW.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _polar(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.hypot(x, y), np.arctan2(y, x)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    radius, angle = _polar(x, y)
    return radius < 0.65 + 0.35 * np.cos(5 * angle)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    radius, angle = _polar(x, y)
    return radius * np.cos((angle + np.pi / 3) % (2 * np.pi / 3) - np.pi / 3) < 0.5


SHAPES: Mapping[str, Shape] = {
    "disc": lambda x, y: np.hypot(x, y) < 0.9,
    "ring": lambda x, y: (np.hypot(x, y) < 1.0) & (np.hypot(x, y) > 0.55),
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.75,
    "triangle": _triangle,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.95),
    "star": _star,
}
"""Name -> whether a point lies in the shape, on coordinates in which it reaches about 1 in every direction."""


def planted_images(num: int, *, size: int, seed: int) -> list[Planted]:
    """`num` images of `size` x `size` pixels, labels in turn, a function of the seed.

    Objects are 0.3 to 0.5 of the image wide, anywhere inside, in any orientation. InputError for a size below 16.
    """
    if size < 16:
        raise InputError(f"size: expected at least 16 pixels, got {size}.")
    rng = np.random.default_rng(seed)
    names = list(SHAPES)
    return [_plant(names[index % len(names)], size, rng) for index in range(num)]


def _plant(label: str, size: int, rng: np.random.Generator) -> Planted:
    radius = size * rng.uniform(0.15, 0.25)
    row, column = rng.uniform(radius, size - radius, 2)
    turn = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] + 0.5
    dx, dy = (x - column) / radius, (y - row) / radius
    mask_HW = SHAPES[label](np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx)
    back_3, front_3 = _apart(rng)
    back_HW3 = _texture(size, back_3, rng)
    front_HW3 = _texture(size, front_3, rng)
    image_HW3 = np.where(mask_HW[..., None], front_HW3, back_HW3)
    return Planted(np.rint(image_HW3.clip(0, 1) * 255).astype(np.uint8), mask_HW, label)


def _apart(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colours that differ clearly."""
    while True:
        back_3, front_3 = rng.uniform(0.15, 0.85, (2, 3))
        if np.abs(back_3 - front_3).max() > 0.35:
            return back_3, front_3


def _texture(size: int, colour_3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour with waves of a few directions and wavelengths, and noise, (H, W, 3)."""
    y_HW, x_HW = np.mgrid[:size, :size] / size
    waves_HW3 = np.zeros((size, size, 3))
    for _ in range(4):
        angle, wavelength, phase = rng.uniform(0, np.pi), rng.uniform(0.06, 0.5), rng.uniform(0, 2 * np.pi)
        along_HW = (np.cos(angle) * x_HW + np.sin(angle) * y_HW) / wavelength
        waves_HW3 += 0.05 * rng.standard_normal(3) * np.sin(2 * np.pi * along_HW + phase)[..., None]
    return colour_3 + waves_HW3 + 0.03 * rng.standard_normal((size, size, 3))
