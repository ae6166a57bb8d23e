"""A tiny model with something to edit, in double precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tiny_vits import images, tiny_vit
from torch import Tensor, nn

from privshard.editing.places import Place, Slot, parse_places, slots_of
from privshard.editing.tail import WeightTail
from privshard.models.vit import ViTView, freeze, view_vit


@dataclass(frozen=True, eq=False)
class Tiny:
    """A model, four images with the labels that they are to get, and the places 1 (ffn) and 1 to 2 (attention)."""

    model: nn.Module
    view: ViTView
    images: Tensor
    labels: Tensor
    places: tuple[Place, ...]
    slots: tuple[Slot, ...]
    tail: WeightTail
    tokens: Tensor


def make_tiny(family: str = "vit", *, places: str = "ffn:1,attention:1-2", dtype=torch.float64) -> Tiny:
    model = freeze(tiny_vit(family, dtype=dtype))
    view = view_vit(model)
    pixels = images(4, model)
    chosen = parse_places(places, depth=3)
    with torch.no_grad():
        labels = (model(pixels).argmax(dim=1) + 1) % 5
        tokens = view.tokens(pixels, first_block=1)
    return Tiny(model, view, pixels, labels, chosen, slots_of(view, chosen), WeightTail(view, 1), tokens)
