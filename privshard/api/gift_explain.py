"""`gift explain` and `gift plant`: cluster maps of images, and how well they find objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from privshard.api.gift_source import Source, load_source_base, open_source
from privshard.core.errors import InputError

if TYPE_CHECKING:
    from privshard.adaptation.gift.scoring import Explained
    from privshard.models.base import Base

MAX_DRAWN = 4
"""How many images a picture holds; scores are of all of them."""


def explain(
    source: str,
    images: Sequence[str],
    *,
    png: str | None = None,
    html: str | None = None,
    masks: str | None = None,
    boxes: str | None = None,
    clusters: int | None = None,
    seeds: int = 5,
    component: str | None = None,
) -> dict[str, Any]:
    """Show what the clusters of a generator see in images, before and after training, and measure it.

    A cluster's map is x C: the layer's patch outputs along the cluster's vector (compact form: C = W phi; PaCa form:
    the assignments less their mean over rows), bilinear to the image, stretched to its own range, below half of it
    zero. Before: the generator as it was drawn, on the base; after: as it was trained, on the network that it changed.

    With masks or boxes, every map is scored by the pointing game and by the intersection over union; a map is chosen on
    half of the images and scored on the other half. Beside the trained generators (each component of a workspace
    counts once) stand `seeds` untrained ones and as many sets of random maps, equally many maps each: a score says
    something about training only above the untrained one, and something at all only above the random one.

    source: a workspace or a generator file. images: files; the first four are drawn. png, html: files to write. masks:
    a folder with an image of each name whose bright pixels are the object. boxes: a JSON file, image name -> list of
    [left, top, right, bottom] in pixels. clusters: how many are drawn, the strongest ones; three unless given.

    Raises InputError for a source without a generator, for more clusters than it has, for masks of another size than
    their image, and for images without a mask or box while others have one.
    """
    from privshard.adaptation.gift.scoring import explain_images

    if not images:
        raise InputError("explain: expected at least one image, got none.")
    if (clusters is not None and clusters < 1) or seeds < 1:
        raise InputError(f"explain: expected at least one cluster and one seed, got {clusters} and {seeds}.")
    learnt = open_source(source, component=component)
    trained = {name: arrays for name, arrays in learnt.parameters.items() if arrays}
    if not trained:
        raise InputError(
            f"{source}: expected components with a generator, got {learnt.method.name} without one.",
            remedy="Train with method: {name: gift}.",
        )
    base = load_source_base(learnt)
    pixels = [_pixels(path, base) for path in images]
    masks_BHW = _masks(images, base, masks=masks, boxes=boxes)
    explained = explain_images(
        base.view,
        dict(learnt.method.options),
        trained,
        x=[_transformed(path, base) for path in images],
        masks_BHW=masks_BHW,
        drawn=range(min(len(images), MAX_DRAWN)),
        clusters=clusters,
        seeds=seeds,
    )
    result = _report(learnt, images, explained)
    if png is not None or html is not None:
        _write(result, explained, pixels, masks_BHW, png=png, html=html)
    return result


def plant(folder: str, *, num: int = 60, size: int = 224, seed: int = 0) -> dict[str, Any]:
    """Write images with planted objects: shapes on textured backgrounds, with exact masks and boxes.

    images/LABEL/SPLIT-NNNN.png, masks/SPLIT-NNNN.png, boxes.json, and planted.parquet for a recipe; every fifth of
    each shape is test. Raises InputError where the folder holds something already.
    """
    from PIL import Image

    from privshard.adaptation.gift.planted import SHAPES, planted_images
    from privshard.data.importer import import_folder

    root = Path(folder)
    if root.exists() and any(root.iterdir()):
        raise InputError(f"folder: expected a new or empty one, {folder} holds something already.")
    boxes: dict[str, list[list[int]]] = {}
    (root / "masks").mkdir(parents=True)
    for index, item in enumerate(planted_images(num, size=size, seed=seed)):
        split = "test" if index // len(SHAPES) % 5 == 4 else "train"
        name = f"{split}-{index:04d}.png"
        (root / "images" / item.label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(item.image_HW3).save(root / "images" / item.label / name)
        Image.fromarray((item.mask_HW * 255).astype(np.uint8)).save(root / "masks" / name)
        boxes[name] = [list(item.box)]
    (root / "boxes.json").write_text(json.dumps(boxes, indent=1))
    table = root / "planted.parquet"
    import_folder(str(root / "images"), out=str(table), split_from=r"(train|test)-\d+\.png$")
    return {"folder": str(folder), "num_images": num, "classes": list(SHAPES), "size": size, "seed": seed}


def _report(learnt: Source, images: Sequence[str], explained: Explained) -> dict[str, Any]:
    return {
        "source": learnt.place,
        "base": {"name": learnt.base.model, "digest": learnt.base_digest},
        "method": {"name": learnt.method.name, **learnt.method.options},
        "num_parameters": explained.num_parameters,
        "components": list(explained.components),
        "images": [str(path) for path in images],
        "layers": list(explained.layers),
        "clusters": list(explained.clusters),
        "localization": explained.localization,
    }


def _write(
    result: dict[str, Any],
    explained: Explained,
    pixels: Sequence[np.ndarray],
    masks_BHW: np.ndarray | None,
    *,
    png: str | None,
    html: str | None,
) -> None:
    from privshard.report.html import write_page
    from privshard.report.map_grid import ImageMaps, map_grid
    from privshard.store.disk import make_folder, write_whole

    items = [
        ImageMaps(
            name=Path(result["images"][at]).name,
            image_HW3=pixels[at],
            before_KLHW=maps.before_KLHW,
            after_KLHW=maps.after_KLHW,
            mask_HW=None if masks_BHW is None else masks_BHW[at],
            iou_before_KL=maps.iou_before_KL,
            iou_after_KL=maps.iou_after_KL,
        )
        for at, maps in explained.drawn.items()
    ]
    form = result["method"]["generator"]
    title = f"GIFT cluster maps, {form} form, rank {result['method']['rank']}, on {result['base']['name']}"
    picture = map_grid(
        items,
        columns=[_column(name, explained.layers) for name in explained.layers],
        clusters=[f"cluster {cluster}" for cluster in explained.clusters],
        title=title,
    )
    if png is not None:
        make_folder(Path(png).parent)
        write_whole(Path(png), picture)
        result["png"] = str(png)
    if html is not None:
        from privshard.report.explain_page import explain_page

        write_page(Path(html), explain_page(result, picture))
        result["html"] = str(html)


def _column(name: str, layers: Sequence[str]) -> str:
    """A layer's heading: its block, and its kind where there are several."""
    _, block, kind = name.split(".", 2)
    several = len({other.split(".", 2)[2] for other in layers}) > 1
    return f"{block} {kind.split('.')[1]}" if several else f"block {block}"


def _transformed(path: str, base: Base) -> Any:
    return base.transform(_opened(path))


def _pixels(path: str, base: Base) -> np.ndarray:
    from privshard.models.geometry import seen_pixels

    return seen_pixels(_opened(path), base.transform_config)


def _opened(path: str) -> Any:
    from privshard.data.images import decode

    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"image: expected a readable file, got {path} ({error.strerror}).") from error
    try:
        return decode(content)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", remedy=error.remedy) from error


def _masks(images: Sequence[str], base: Base, *, masks: str | None, boxes: str | None) -> np.ndarray | None:
    """The object in each image as the base sees it, (B, H, W); None where neither masks nor boxes are given."""
    from PIL import Image

    from privshard.models.geometry import seen_pixels

    if masks is None and boxes is None:
        return None
    if masks is not None and boxes is not None:
        raise InputError("explain: expected masks or boxes, got both.", remedy="Give the more exact one, masks.")
    found = []
    for path in images:
        size = _opened(path).size
        mask_HW = _from_folder(path, Path(str(masks)), size) if masks is not None else _from_boxes(path, boxes, size)
        grey = Image.fromarray((mask_HW * 255).astype(np.uint8)).convert("RGB")
        seen_HW = seen_pixels(grey, base.transform_config, nearest=True)[..., 0] > 127
        if not seen_HW.any():
            raise InputError(
                f"mask: the object of {path} lies outside of what the model sees of the image, or is empty.",
                remedy="Leave the image out, or crop it to the object.",
            )
        found.append(seen_HW)
    return np.stack(found)


def _from_folder(path: str, folder: Path, size: tuple[int, int]) -> np.ndarray:
    place = next((found for found in sorted(folder.glob(f"{Path(path).stem}.*")) if found.is_file()), None)
    if place is None:
        raise InputError(f"masks: expected a mask of {path} in {folder}, named {Path(path).stem}.png; found none.")
    mask = _opened(str(place)).convert("L")
    if mask.size != size:
        raise InputError(f"masks: {place} is {mask.size} pixels, {path} is {size}; expected the same.")
    return np.asarray(mask) > 127


def _from_boxes(path: str, boxes: str | None, size: tuple[int, int]) -> np.ndarray:
    listed = _read_boxes(str(boxes))
    name = Path(path).name
    if not listed.get(name):
        raise InputError(f"boxes: expected boxes of {name} in {boxes}, found none.")
    mask_HW = np.zeros((size[1], size[0]), dtype=bool)
    for box in listed[name]:
        left, top, right, bottom = box
        if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
            raise InputError(f"boxes: expected [left, top, right, bottom] inside {size} for {name}, got {list(box)}.")
        mask_HW[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    return mask_HW


def _read_boxes(path: str) -> Mapping[str, list[list[float]]]:
    try:
        value = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"boxes: expected a JSON file of image name -> list of boxes, got {path}: {error}.") from error
    if not isinstance(value, dict) or not all(isinstance(item, list) for item in value.values()):
        raise InputError(f"boxes: expected image name -> list of [left, top, right, bottom] in {path}.")
    for name, item in value.items():
        for box in item:
            if not isinstance(box, list) or len(box) != 4 or not all(type(end) in (int, float) for end in box):
                raise InputError(
                    f"boxes: expected image name -> list of four numbers in {path}, got {box} of {name}.",
                    remedy="Give each box as [left, top, right, bottom] in pixels.",
                )
    return value
