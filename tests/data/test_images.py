"""Decoding and batching."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from privshard.core.errors import InputError
from privshard.data.images import decode, image_batches

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def _encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _pixels(image: bytes) -> np.ndarray:
    decoded = decode(image)
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


def test_rgb_is_kept():
    np.testing.assert_array_equal(_pixels(_encoded(Image.fromarray(RGB))), RGB)


def test_grey_is_repeated():
    grey = RGB[..., 0]
    np.testing.assert_array_equal(_pixels(_encoded(Image.fromarray(grey))), np.stack([grey] * 3, -1))


def test_sixteen_bit_grey_keeps_its_range():
    grey = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
    assert _pixels(_encoded(Image.fromarray(grey)))[0, :, 0].tolist() == [0, 0, 1, 1, 100, 255]


def test_palette_is_looked_up():
    image = Image.fromarray(RGB).quantize(4)
    np.testing.assert_array_equal(_pixels(_encoded(image)), np.asarray(image.convert("RGB")))


def test_transparency_lies_over_white():
    alpha = np.full((4, 6, 1), 255, np.uint8)
    alpha[0, 0] = 0
    pixels = _pixels(_encoded(Image.fromarray(np.concatenate([RGB, alpha], -1))))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(pixels[1:], RGB[1:])


def test_transparent_grey_and_palette_lie_over_white():
    for image in (Image.new("LA", (1, 1), (0, 0)), Image.new("P", (1, 1), 0)):
        options = {"transparency": 0} if image.mode == "P" else {}
        assert _pixels(_encoded(image, **options)).tolist() == [[[255, 255, 255]]]
    assert _pixels(_encoded(Image.new("L", (1, 1), 9), transparency=9)).tolist() == [[[255, 255, 255]]]
    assert _pixels(_encoded(Image.new("L", (1, 1), 9), transparency=8)).tolist() == [[[9, 9, 9]]]


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert np.abs(_pixels(_encoded(image, "JPEG")).astype(int) - [0, 255, 255]).max() <= 2


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(_pixels(_encoded(Image.fromarray(RGB), exif=exif)), np.rot90(RGB, -1))


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert _pixels(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"not an image", lambda data: data[: len(data) // 2]]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_unreadable_images_are_input_errors(damage, kind):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="Expected an image"):
        decode(damage(_encoded(image, kind)))


def test_floating_point_pixels_are_refused():
    with pytest.raises(InputError, match="32-bit floats"):
        decode(_encoded(Image.new("F", (2, 2)), "TIFF"))


def test_image_bombs_are_refused(monkeypatch, png):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match="bomb"):
        decode(png(0))


def _transform(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 8])
def test_batches_equal_one_image_at_a_time(png, num_workers, batch_size):
    images = [png(seed) for seed in range(7)]
    batches = list(image_batches(images, transform=_transform, batch_size=batch_size, num_workers=num_workers))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    expected = torch.stack([_transform(decode(image)).float() for image in images])
    assert torch.equal(torch.cat(batches), expected)
    assert batches[0].dtype == torch.float32


def test_threads_that_decode_start_no_threads_of_their_own(png):
    seen = set()

    def transform(image: Image.Image) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return _transform(image)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        list(image_batches([png(0)] * 8, transform=transform, batch_size=4, num_workers=2))
        assert (seen, torch.get_num_threads()) == ({1}, 3)
    finally:
        torch.set_num_threads(before)


def test_no_images_make_no_batches():
    assert list(image_batches([], transform=_transform, batch_size=4)) == []


def test_transform_must_give_one_size(png):
    with pytest.raises(InputError, match=r"one size for all images, got \[\(3, 6, 6\), \(3, 9, 9\)\]"):
        next(image_batches([png(0), png(1, size=9)], transform=_transform, batch_size=2))
    with pytest.raises(InputError, match="batch_size"):
        next(image_batches([png(0)], transform=_transform, batch_size=0))
