"""How well maps find an object: pointing game and intersection over union, for maps chosen without looking.

With enough maps, one of them fits any object. So the map is chosen on some of the images and scored on the others; the
best map of each image is reported beside it, and means something only against as many random maps.

B images, M maps, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from privshard.adaptation.gift.maps import THRESHOLD
from privshard.core.errors import InputError


@dataclass(frozen=True)
class Localization:
    """Scores of one set of maps, all fractions.

    pointing, iou: of the one map that fits the choosing images best, on the other images (None with fewer than two
    images); map: its index. best_iou: mean over images of the best map of each. area: mean share of pixels that lie in
    the object, what pointing at random scores.
    """

    pointing: float | None
    iou: float | None
    map: int | None
    best_iou: float
    area: float
    num_images: int

    def to_json(self) -> dict[str, float | int | None]:
        """Plain JSON form."""
        return asdict(self)


def pointing_hits(maps_BMHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """Whether the strongest pixel of each map lies in the object, (B, M). A map that is zero everywhere points
    nowhere."""
    flat_BMP, mask_BP = maps_BMHW.flatten(2), masks_BHW.flatten(1)
    value_BM, at_BM = flat_BMP.max(-1)
    return mask_BP.gather(1, at_BM) & (value_BM > 0)


def intersection_over_union(maps_BMHW: Tensor, masks_BHW: Tensor, *, threshold: float = THRESHOLD) -> Tensor:
    """|map >= threshold and object| / |map >= threshold or object|, (B, M)."""
    on_BMHW = maps_BMHW >= threshold
    both = (on_BMHW & masks_BHW[:, None]).sum((-2, -1)).double()
    either = (on_BMHW | masks_BHW[:, None]).sum((-2, -1)).double()
    return torch.where(either > 0, both / either.clamp(min=1), 0.0)


def localization(hits_BM: Tensor, iou_BM: Tensor, masks_BHW: Tensor) -> Localization:
    """Score maps: every second image chooses the map, the others score it, and the other way round; then the mean.

    Test: tests/adaptation/gift/test_localization.py.
    """
    num = len(iou_BM)
    if num == 0 or iou_BM.shape != hits_BM.shape:
        raise InputError(f"localization: expected scores of images, got shapes {hits_BM.shape} and {iou_BM.shape}.")
    best, area = float(iou_BM.max(1).values.mean()), float(masks_BHW.double().mean())
    if num < 2:
        return Localization(None, None, None, best, area, num)
    even_B = torch.arange(num) % 2 == 0
    pointing, iou = 0.0, 0.0
    for chooses_B in (even_B, ~even_B):
        at = int(iou_BM[chooses_B].mean(0).argmax())
        share = float((~chooses_B).double().mean())
        pointing += share * float(hits_BM[~chooses_B, at].double().mean())
        iou += share * float(iou_BM[~chooses_B, at].mean())
    return Localization(pointing, iou, int(iou_BM.mean(0).argmax()), best, area, num)


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds, and the standard deviation between them (None of a single one)."""
    value_S = torch.tensor(values, dtype=torch.float64)
    return float(value_S.mean()), float(value_S.std()) if len(values) > 1 else None
