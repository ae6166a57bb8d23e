"""Cluster maps as one picture: images by block, before and after training, a PNG that stands on its own.

K clusters, L columns (blocks), H and W pixels of an image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CELL = 104
_GAP, _PAIR_GAP, _SECTION_GAP, _MARGIN = 4, 14, 46, 28
_LEFT, _IMAGE, _HEAD, _FOOT = 156, 2 * CELL + _GAP, 74, 62
_INK, _MUTED = "#1c2127", "#5b6570"
_OUTLINE = (0, 214, 255)
_COLOURS = "inferno"
_LOW, _HIGH = 0.35, 0.92
"""The part of the colour map that is used: neither so dark nor so pale that it could be the image."""


@dataclass(frozen=True)
class ImageMaps:
    """What is drawn of one image.

    image_HW3: bytes. mask_HW: the object, where it is known. before_KLHW, after_KLHW: maps in [0, 1] of which what is
    zero isn't drawn. iou_before_KL, iou_after_KL: numbers to write into the cells, beside a mask.
    """

    name: str
    image_HW3: np.ndarray
    before_KLHW: np.ndarray
    after_KLHW: np.ndarray
    mask_HW: np.ndarray | None = None
    iou_before_KL: np.ndarray | None = None
    iou_after_KL: np.ndarray | None = None


def map_grid(items: Sequence[ImageMaps], *, columns: Sequence[str], clusters: Sequence[str], title: str) -> bytes:
    """A PNG: for each image the image itself, then for each cluster a row before and a row after training, one column a
    block. Colours are strength; the outline is the object's; numbers are the intersection over union with it.

    columns: L names. clusters: K names. Test: tests/report/test_map_grid.py.
    """
    import matplotlib
    from matplotlib.figure import Figure

    section = len(clusters) * (2 * CELL + _GAP) + (len(clusters) - 1) * _PAIR_GAP
    width = _MARGIN + _IMAGE + _LEFT + len(columns) * (CELL + _GAP) + _MARGIN
    height = _HEAD + len(items) * (section + _SECTION_GAP) + _FOOT
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        canvas = np.full((height, width, 3), 255, dtype=np.uint8)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.text(_MARGIN, 26, title, fontsize=12, fontweight="bold", color=_INK, va="center", parse_math=False)
        for index, item in enumerate(items):
            top = _HEAD + index * (section + _SECTION_GAP)
            _draw_item(axes, canvas, item, top=top, columns=columns, clusters=clusters)
        _legend(axes, canvas, top=height - _FOOT + 14, outlined=any(item.mask_HW is not None for item in items))
        axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest", aspect="auto", zorder=-1)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def _draw_item(
    axes: Any, canvas: np.ndarray, item: ImageMaps, *, top: int, columns: Sequence[str], clusters: Sequence[str]
) -> None:
    left = _MARGIN + _IMAGE + _LEFT
    picture = _outlined(_resized(item.image_HW3, _IMAGE), item.mask_HW, width=3)
    _place(canvas, picture, top, _MARGIN)
    axes.text(_MARGIN, top + _IMAGE + 16, _short(item.name), fontsize=8.5, color=_MUTED, va="center", parse_math=False)
    for column, name in enumerate(columns):
        centre = left + column * (CELL + _GAP) + CELL / 2
        axes.text(centre, top - 10, name, fontsize=8.5, color=_MUTED, ha="center", va="center", parse_math=False)
    grey = _faded(_resized(item.image_HW3, CELL))
    for row, name in enumerate(clusters):
        start = top + row * (2 * CELL + _GAP + _PAIR_GAP)
        axes.text(
            left - 66, start + CELL + _GAP / 2, name, fontsize=9.5, color=_INK, ha="right", va="center",
            fontweight="bold", parse_math=False,
        )  # fmt: skip
        for place, (maps, scores, label) in enumerate(
            ((item.before_KLHW, item.iou_before_KL, "before"), (item.after_KLHW, item.iou_after_KL, "after"))
        ):
            at = start + place * (CELL + _GAP)
            axes.text(left - 10, at + CELL / 2, label, fontsize=8.5, color=_MUTED, ha="right", va="center")
            for column in range(len(columns)):
                x = left + column * (CELL + _GAP)
                cell = _outlined(_overlaid(grey, maps[row, column]), item.mask_HW, width=1)
                _place(canvas, cell, at, x)
                if scores is not None:
                    axes.text(
                        x + CELL - 4, at + CELL - 5, f"{scores[row, column]:.2f}", fontsize=6.5, color="white",
                        ha="right", va="bottom",
                        bbox={"boxstyle": "square,pad=0.2", "facecolor": "#1c2127cc", "edgecolor": "none"},
                    )  # fmt: skip


def _legend(axes: Any, canvas: np.ndarray, *, top: int, outlined: bool) -> None:
    """The colour scale, and what the outline and the numbers are."""
    ramp = _coloured(np.tile(np.linspace(0.5, 1.0, 120), (12, 1)))
    _place(canvas, (255 * ramp).astype(np.uint8), top, _MARGIN)
    axes.text(_MARGIN, top + 22, "0.5", fontsize=7.5, color=_MUTED, va="center", ha="left")
    axes.text(_MARGIN + 120, top + 22, "1", fontsize=7.5, color=_MUTED, va="center", ha="right")
    words = "share of the map's own range; below 0.5 nothing is drawn"
    axes.text(_MARGIN + 134, top + 6, words, fontsize=8.5, color=_MUTED, va="center")
    if outlined:
        x = _MARGIN + 134 + 380
        canvas[top + 1 : top + 12, x : x + 22] = 225
        canvas[top + 1 : top + 12, [x, x + 21]] = _OUTLINE
        canvas[[top + 1, top + 11], x : x + 22] = _OUTLINE
        axes.text(
            x + 30, top + 6, "the object; numbers: intersection over union with it", fontsize=8.5, color=_MUTED,
            va="center",
        )  # fmt: skip


def _coloured(values: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] of strengths from 0.5 to 1."""
    from matplotlib import colormaps

    share = _LOW + (np.clip(values, 0.5, 1.0) - 0.5) / 0.5 * (_HIGH - _LOW)
    return colormaps[_COLOURS](share)[..., :3]


def _overlaid(grey_HW3: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
    strength = _resized_map(map_HW, grey_HW3.shape[0])
    opacity = np.where(strength > 0, 0.8, 0.0)[..., None]
    mixed = grey_HW3 * (1 - opacity) + 255 * _coloured(strength) * opacity
    return mixed.astype(np.uint8)


def _faded(image_HW3: np.ndarray) -> np.ndarray:
    """The image in pale grey, so that colours are the maps' alone."""
    grey = image_HW3.astype(np.float64) @ (0.299, 0.587, 0.114)
    return np.repeat((0.6 * grey + 0.4 * 255)[..., None], 3, axis=-1)


def _outlined(image_HW3: np.ndarray, mask_HW: np.ndarray | None, *, width: int) -> np.ndarray:
    """The image with the border of the mask drawn in it."""
    if mask_HW is None:
        return image_HW3
    mask = _resized_map(mask_HW.astype(np.float64), image_HW3.shape[0]) > 0.5
    grown = mask.copy()
    for _ in range(width):
        padded = np.pad(grown, 1)
        grown = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    out = image_HW3.copy()
    out[grown & ~mask] = _OUTLINE
    return out


def _resized(image_HW3: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(image_HW3).resize((size, size), Image.Resampling.BICUBIC))


def _resized_map(map_HW: np.ndarray, size: int) -> np.ndarray:
    """Nearest pixels: what was cut to zero stays zero, and what wasn't keeps its value."""
    rows = (np.arange(size) + 0.5) * map_HW.shape[0] / size
    columns = (np.arange(size) + 0.5) * map_HW.shape[1] / size
    return map_HW[rows.astype(int)][:, columns.astype(int)]


def _place(canvas: np.ndarray, picture: np.ndarray, top: int, left: int) -> None:
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


def _short(name: str, length: int = 34) -> str:
    return name if len(name) <= length else "…" + name[-length + 1 :]
