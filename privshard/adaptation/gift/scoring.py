"""From images to cluster maps and their scores: trained generators, untrained ones, and random maps.

B images, M maps of a layer, K drawn clusters, L layers, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privshard.adaptation.gift.adapter import GiftAdapter
from privshard.adaptation.gift.localization import (
    Localization,
    intersection_over_union,
    localization,
    pointing_hits,
    spread,
)
from privshard.adaptation.gift.maps import layer_outputs, patch_maps, pixel_maps, random_maps, shown
from privshard.adaptation.gift.spec import GiftSpec
from privshard.core.errors import InputError
from privshard.models.vit import ViTView

DRAWN = 3
"""How many clusters are drawn unless somebody says so."""

_BATCH = 8


@dataclass(frozen=True)
class DrawnMaps:
    """The maps of one image that are drawn, zero where nothing is shown; scores where there is a mask."""

    before_KLHW: np.ndarray
    after_KLHW: np.ndarray
    iou_before_KL: np.ndarray | None
    iou_after_KL: np.ndarray | None


@dataclass(frozen=True)
class Explained:
    """Maps and scores. drawn: image number -> its maps. clusters: which ones are drawn. localization: JSON, or None
    without masks."""

    num_parameters: int
    components: tuple[str, ...]
    layers: tuple[str, ...]
    clusters: tuple[int, ...]
    drawn: Mapping[int, DrawnMaps]
    localization: dict[str, Any] | None


def explain_images(
    view: ViTView,
    options: Mapping[str, Any],
    trained: Mapping[str, Mapping[str, np.ndarray]],
    *,
    x: Sequence[Tensor],
    masks_BHW: np.ndarray | None,
    drawn: Sequence[int],
    clusters: int | None,
    seeds: int,
) -> Explained:
    """Maps of the first of `trained` (component -> parameters), and scores of all of them, of `seeds` untrained
    generators and of `seeds` sets of random maps.

    options: of the method, as recipes give them; its seed is where training started, so "before" is that start.
    """
    own = {name: value for name, value in options.items() if name != "seed"}
    adapter = GiftAdapter(view, GiftSpec.of(own))
    thetas = {name: _own(adapter, arrays) for name, arrays in trained.items()}
    first = next(iter(thetas.values()))
    starts = [adapter.initial(int(options.get("seed", 0)) + seed) for seed in range(seeds)]
    chosen = strongest(adapter, first, clusters)
    masks = None if masks_BHW is None else torch.from_numpy(masks_BHW)
    layers = tuple(layer.name for layer in adapter.gift.layers)
    scores = None
    if masks is not None:
        generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
        counts = sum(vectors.shape[1] for vectors in adapter.gift.cluster_vectors(first).values())
        scores = _summary(
            trained=[score(adapter, theta, x, masks) for theta in thetas.values()],
            untrained=[score(adapter, start, x, masks) for start in starts],
            random=[score_random(view, counts, masks, generator) for generator in generators],
        )
    before = _drawn(adapter, starts[0], [x[at] for at in drawn], chosen)
    after = _drawn(adapter, first, [x[at] for at in drawn], chosen)
    found = {
        at: DrawnMaps(
            before_KLHW=shown(before[row]).numpy(),
            after_KLHW=shown(after[row]).numpy(),
            iou_before_KL=None if masks is None else _iou(before[row], masks[at]),
            iou_after_KL=None if masks is None else _iou(after[row], masks[at]),
        )
        for row, at in enumerate(drawn)
    }
    return Explained(adapter.num_parameters(), tuple(thetas), layers, chosen, found, scores)


def strongest(adapter: GiftAdapter, parameters: Mapping[str, Tensor], count: int | None = None) -> tuple[int, ...]:
    """The `count` clusters that do most, strongest first; None for DRAWN, or all where there are fewer.

    Compact form: by |phi_j| |psi_j|, what cluster j adds to I + phi psi at most. PaCa form: by how much the
    assignments to it differ between rows of the weights, since a cluster that takes all rows alike parts nothing.
    Summed over generators, where there are several. Raises InputError for a count above the number of clusters.
    """
    gift, total = adapter.gift, None
    for group in gift.groups:
        mine = gift.own(parameters, group)
        if gift.spec.generator == "compact":
            strength = mine["phi"].norm(dim=0) * mine["psi"].norm(dim=1)
        else:
            vectors = gift.cluster_vectors(parameters)
            strength = torch.stack([vectors[layer.name].std(dim=0) for layer in group.layers]).mean(0)
        total = strength if total is None else total + strength
    assert total is not None
    if count is not None and count > len(total):
        raise InputError(
            f"clusters: expected at most the generator's {len(total)}, got {count}.",
            remedy="Leave it out: the strongest are drawn.",
        )
    return tuple(int(at) for at in total.argsort(descending=True, stable=True)[: DRAWN if count is None else count])


def score(
    adapter: GiftAdapter, parameters: Mapping[str, Tensor], x: Sequence[Tensor], masks_BHW: Tensor
) -> Localization:
    """How well the maps of one generator find the objects; all layers' maps stand for election."""
    hits, ious = [], []
    for start, maps in _maps(adapter, parameters, x):
        masks = masks_BHW[start : start + len(next(iter(maps.values())))]
        hits.append(torch.cat([pointing_hits(found, masks) for found in maps.values()], dim=1))
        ious.append(torch.cat([intersection_over_union(found, masks) for found in maps.values()], dim=1))
    return localization(torch.cat(hits), torch.cat(ious), masks_BHW)


def _own(adapter: GiftAdapter, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(arrays[name])) for name in adapter.gift.shapes()}


@torch.no_grad()
def _maps(
    adapter: GiftAdapter, parameters: Mapping[str, Tensor], x: Sequence[Tensor]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(first image, layer -> maps (B, M, H, W)) in batches, under the weights that the parameters make."""
    gift, model = adapter.gift, adapter.view.model
    changed, vectors = adapter.changed(parameters), gift.cluster_vectors(parameters)
    for start in range(0, len(x), _BATCH):
        images = torch.stack(list(x[start : start + _BATCH]))
        outputs = layer_outputs(adapter.view, images, gift.layers, changed=changed)
        size = (images.shape[2], images.shape[3])
        yield (
            start,
            {
                name: pixel_maps(patch_maps(out, vectors[name], grid=model.patch_embed.grid_size), size=size)
                for name, out in outputs.items()
            },
        )


def _drawn(
    adapter: GiftAdapter, parameters: Mapping[str, Tensor], x: Sequence[Tensor], clusters: Sequence[int]
) -> list[Tensor]:
    """The maps of the chosen clusters of each image, (K, L, H, W)."""
    found: list[Tensor] = []
    for _, maps in _maps(adapter, parameters, x):
        layers = [maps[layer.name][:, list(clusters)] for layer in adapter.gift.layers]
        found += list(torch.stack(layers, dim=2))
    return found


def score_random(view: ViTView, count: int, masks_BHW: Tensor, generator: torch.Generator) -> Localization:
    """How well `count` maps that know nothing of the images find the objects."""
    grid, size = view.model.patch_embed.grid_size, (masks_BHW.shape[1], masks_BHW.shape[2])
    hits, ious = [], []
    for mask_HW in masks_BHW:
        maps = pixel_maps(random_maps(1, count, grid=grid, generator=generator), size=size)
        hits.append(pointing_hits(maps, mask_HW[None]))
        ious.append(intersection_over_union(maps, mask_HW[None]))
    return localization(torch.cat(hits), torch.cat(ious), masks_BHW)


def _iou(maps_KLHW: Tensor, mask_HW: Tensor) -> np.ndarray:
    return intersection_over_union(maps_KLHW.transpose(0, 1), mask_HW.expand(maps_KLHW.shape[1], -1, -1)).mT.numpy()


def _summary(**sets: list[Localization]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every score; what single images can't tell is None."""
    first = next(iter(sets.values()))[0]
    out: dict[str, Any] = {"num_images": first.num_images, "area": first.area}
    for name, found in sets.items():
        out[name] = {"num_generators": len(found)}
        for key in ("pointing", "iou", "best_iou"):
            values = [getattr(item, key) for item in found]
            mean, deviation = (None, None) if None in values else spread(values)
            out[name][key] = {"mean": mean, "deviation": deviation}
    return out
