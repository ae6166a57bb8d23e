"""Encoded images to pixels: one decoder for every format, and ordered batches for a model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from privshard.core.errors import InputError
from privshard.data.prefetch import in_chunks, ordered_map

if TYPE_CHECKING:
    from torch import Tensor

_BACKGROUND = (255, 255, 255)


def decode(image: bytes) -> Image.Image:
    """The RGB image of 8 bits a channel that an encoded file shows: a pure function of its bytes.

    The EXIF orientation is applied; transparency is laid over white; 16-bit grey keeps its range (v / 257);
    palettes and CMYK are converted; of an animation the first frame is taken.

    Raises InputError where the file cannot be decoded to its end, or its pixels have no known range (32-bit float).
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
        raise InputError(
            f"Expected an image that Pillow can read, got {len(image)} bytes it cannot ({error}).",
            remedy="Remove the image or save it again as PNG or JPEG.",
        ) from error


def image_batches(
    images: Iterable[bytes],
    *,
    transform: Callable[[Image.Image], Tensor],
    batch_size: int,
    num_workers: int = 0,
) -> Iterator[Tensor]:
    """Batches of float32 (B, 3, H, W), in the order of `images`; the last one may be smaller.

    transform: RGB image -> tensor (3, H, W), the same size for every image; usually the base's eval transform.
    num_workers: threads that decode ahead, 0 for none; the batches are the same bit for bit.
    """
    import torch

    def prepare(image: bytes) -> Tensor:
        return transform(decode(image)).to(torch.float32)

    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}.")
    tensors = ordered_map(prepare, images, num_workers=num_workers, initializer=_without_more_threads)
    for chunk_3HW in in_chunks(tensors, size=batch_size):
        shapes = {tuple(tensor.shape) for tensor in chunk_3HW}
        if len(shapes) > 1:
            raise InputError(
                f"transform: expected one size for all images, got {sorted(shapes)}.",
                remedy="Use a transform that resizes and crops to a fixed size.",
            )
        yield torch.stack(chunk_3HW)


def _without_more_threads() -> None:
    """Have this thread alone do its tensor operations: a team of threads for each of many would wait for the cores,
    actively, longer than it works."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # gives this thread the process's number, once; what is set after it stays
    threadpool_limits(limits=1, user_api="openmp")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InputError(
            "Expected pixels of a known range, got 32-bit floats.", remedy="Save the image as 8- or 16-bit PNG."
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey_HW = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey_HW + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        premultiplied = {"La": "LA", "RGBa": "RGBA"}
        layer = image.convert(premultiplied.get(image.mode, image.mode)).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (*_BACKGROUND, 255)), layer)
    return image.convert("RGB")
