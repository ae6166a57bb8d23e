"""Generated images, Parquet files and an object store for the tests of `privshard.data`."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from privshard.data.examples import SourceRow
from privshard.store.objects import ObjectStore


def _png(seed: int, size: int = 6) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def png() -> Callable[..., bytes]:
    """seed -> the bytes of a small random PNG."""
    return _png


@pytest.fixture
def people() -> list[SourceRow]:
    """Twenty people with one to four rows each, labels "a" to "c", no split."""
    rows, seed = [], 0
    for person in range(20):
        for _ in range(1 + person % 4):
            rows.append(
                SourceRow(_png(seed), "abc"[seed % 3], f"person-{person:02d}", source="people.parquet", row=seed)
            )
            seed += 1
    return rows


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """(name, columns, schema metadata) -> the path of a Parquet file; image values may be bytes or dicts."""

    def write(name: str, columns: dict[str, object], metadata: dict[str, str] | None = None, **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, **options)
        return path

    return write


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """name -> a real data set's Parquet file; skips where PRIVSHARD_TEST_DATA is not set, fails where it lies."""

    def find(name: str) -> Path:
        home = os.environ.get("PRIVSHARD_TEST_DATA")
        if not home:
            pytest.skip("PRIVSHARD_TEST_DATA is not set: no real data to test on")
        path = Path(home) / "data" / f"{name}.parquet"
        assert path.is_file(), f"PRIVSHARD_TEST_DATA is set, but {path} is missing"
        return path

    return find


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    """An object store in a new local folder."""
    return ObjectStore(tmp_path / "workspace")
