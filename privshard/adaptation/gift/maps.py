"""Cluster maps: where in an image the outputs of a layer lie along the generator's cluster vectors.

B images, N tokens, O output width of a layer, M maps, h and w patches, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privshard.adaptation.gift.layers import TargetLayer
from privshard.models.vit import ViTView

THRESHOLD = 0.5
"""What lies below this share of a map's range is not shown."""


@torch.no_grad()
def layer_outputs(
    view: ViTView, images: Tensor, layers: Sequence[TargetLayer], *, changed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Layer -> its outputs for images, patches alone, (B, h * w, O); `changed` replaces parameters of the base."""
    found: dict[str, Tensor] = {}
    prefix = view.model.num_prefix_tokens

    def keep(layer: TargetLayer):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[layer.name] = output[:, prefix:, layer.rows]

        return hook

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.module.register_forward_hook(keep(layer)).remove)
        torch.func.functional_call(view.model, dict(changed), (images,))
    return found


def patch_maps(outputs_BNO: Tensor, vectors_OM: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """x C on the grid of patches, (B, M, h, w)."""
    return (outputs_BNO @ vectors_OM).mT.unflatten(-1, grid)


def pixel_maps(maps_BMhw: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Maps on the image, (B, M, H, W) in [0, 1]: bilinear, then each map stretched to its own range.

    A map that is constant separates nothing and is zero everywhere.
    """
    maps_BMHW = F.interpolate(maps_BMhw, size=size, mode="bilinear", align_corners=False)
    low, high = maps_BMHW.amin((-2, -1), keepdim=True), maps_BMHW.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps_BMHW - low) / torch.where(span > 0, span, torch.ones_like(span)), 0.0)


def shown(maps_BMHW: Tensor) -> Tensor:
    """What is drawn of maps in [0, 1]: below THRESHOLD, zero."""
    return torch.where(maps_BMHW < THRESHOLD, 0.0, maps_BMHW)


def random_maps(num_images: int, num_maps: int, *, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Maps (B, M, h, w) that know nothing of the image: the level that a score has to beat."""
    return torch.randn(num_images, num_maps, *grid, generator=generator)
