"""The embedded example: 1,797 real handwritten digits that come with scikit-learn, in illustrative groups."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from privshard.data.examples import SourceRow

EXAMPLE_NAME = "digits"
EXAMPLE_CLASSES: tuple[str, ...] = tuple("0123456789")
EXAMPLE_NOMINAL_EXAMPLES = 1617
EXAMPLE_NOMINAL_SUBJECTS = 162
_GROUP = 10


def example_rows() -> Iterator[SourceRow]:
    """The digits as 8x8 grey PNG, labelled "0" to "9"; no split, so a keyed tenth of the subjects is held out.

    Subjects are groups of ten consecutive images, "group-000" to "group-179" (the last has seven). They only
    illustrate: the data doesn't say who wrote what. The nominal numbers are nine tenths of 1,797 and of 180, public
    because the data is.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    for row, (image_HW, label) in enumerate(zip(pixels.reshape(-1, 8, 8), labels, strict=True)):
        yield SourceRow(
            image=_png(np.rint(image_HW * (255 / 16)).astype(np.uint8)),
            label=EXAMPLE_CLASSES[label],
            subject=f"group-{row // _GROUP:03d}",
            source=EXAMPLE_NAME,
            row=row,
        )


def _png(pixels_HW: np.ndarray) -> bytes:
    """PNG without compression, so that ids don't depend on the version of a compressor."""
    sink = io.BytesIO()
    Image.fromarray(pixels_HW).save(sink, "PNG", compress_level=0)
    return sink.getvalue()
