"""A few real digits with people who are made up: data small enough to train on in a second."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NUM_PEOPLE = 8
ROWS_EACH = 4


def people(*, num_people: int = NUM_PEOPLE, rows_each: int = ROWS_EACH) -> Iterator[dict[str, Any]]:
    """Rows of "person-00", "person-01", …; the last two of them are test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    for row in range(num_people * rows_each):
        person = row // rows_each
        sink = io.BytesIO()
        Image.fromarray(np.rint(pixels[row].reshape(8, 8) * (255 / 16)).astype(np.uint8)).save(sink, "PNG")
        yield {
            "image": {"bytes": sink.getvalue(), "path": f"{row}.png"},
            "label": str(labels[row]),
            "subject": f"person-{person:02d}",
            "split": "test" if person >= num_people - 2 else "train",
        }


def write_people(path: Path, rows: list[dict[str, Any]] | None = None, **options: int) -> Path:
    """Write `rows`, or `people(**options)`, as a Parquet file."""
    pq.write_table(pa.Table.from_pylist(list(people(**options)) if rows is None else rows), path)
    return path


def recipe_values(path: Path, **changes: Mapping[str, Any] | int | None) -> dict[str, Any]:
    """A recipe for such a file that trains in a moment; `changes` by section, merged into it."""
    values: dict[str, Any] = {
        "data": {"path": str(path), "classes": list("0123456789"), "nominal_examples": 24, "nominal_subjects": 6},
        "shards": 2,
        "training": {"steps": 2},
        "ray": {"address": "none"},
    }
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change} if isinstance(change, Mapping) else change
    return values
