"""Pictures from outside a workspace: the rows of a Parquet file, or every image file below a folder."""

from __future__ import annotations

from pathlib import Path

from privshard.core.errors import InputError
from privshard.data.examples import SourceRow
from privshard.data.reader import read_rows
from privshard.data.schema import Columns

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def read_pictures(path: str | Path, *, split: str | None = None) -> list[SourceRow]:
    """All pictures that `path` names, in a fixed order.

    A Parquet file, or a folder of them, gives its rows; split "train" or "eval" keeps those of that side. Any other
    folder gives its image files, each labelled by the folder that it lies in. InputError where there is none.
    """
    path = Path(path)
    if path.is_dir() and not any(path.rglob("*.parquet")):
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        rows = [SourceRow(file.read_bytes(), file.parent.name, source=str(file)) for file in files]
    else:
        rows = list(read_rows(path, columns=Columns()))
        rows = [row for row in rows if split is None or row.split == split]
    if not rows:
        raise InputError(
            f"{path}: expected image files or Parquet rows, found none.",
            remedy=f"Image files end with {', '.join(sorted(SUFFIXES))}.",
        )
    return rows
