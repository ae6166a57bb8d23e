"""Data and a recipe small enough to train on in a moment: real digits of people who are made up."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from privshard.api.recipe import Recipe

ROWS_EACH = 4


def write_small_data(path: Path, *, num_people: int = 16) -> Path:
    """A Parquet file of `num_people` with four digits each; the last quarter of them are held out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(_rows(num_people))), path)
    return path


def small_recipe(path: Path, *, shards: int, insecure_seed: int | None = None, **changes: Any) -> Recipe:
    """Two steps on one thread; `changes` by section, merged."""
    values: dict[str, Any] = {
        "data": {"path": str(path), "classes": list("0123456789"), "nominal_examples": 48, "nominal_subjects": 12},
        "shards": shards,
        "training": {"steps": 2},
        "insecure_seed": insecure_seed,
    }
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change} if isinstance(change, Mapping) else change
    return Recipe(**values)


def _rows(num_people: int) -> Iterator[dict[str, Any]]:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    for row in range(num_people * ROWS_EACH):
        person, sink = row // ROWS_EACH, io.BytesIO()
        Image.fromarray(np.rint(pixels[row].reshape(8, 8) * (255 / 16)).astype(np.uint8)).save(sink, "PNG")
        yield {
            "image": {"bytes": sink.getvalue(), "path": f"{row}.png"},
            "label": str(labels[row]),
            "subject": f"person-{person:03d}",
            "split": "test" if person >= num_people * 3 // 4 else "train",
        }
