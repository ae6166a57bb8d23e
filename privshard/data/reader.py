"""Stream the rows of Parquet files, a bounded batch at a time, so that a file may be larger than memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from privshard.core.errors import InputError
from privshard.data.examples import SourceRow
from privshard.data.schema import Columns, Role, check_schema, parse_split

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_READ_AHEAD_BYTES = 1 << 20


def parquet_files(path: str | Path, *, key: str = "data.path") -> list[Path]:
    """The Parquet files that `path` names: itself, or every *.parquet below a folder, sorted by name.

    key: what messages call the path.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(
            f"{key}: expected a Parquet file or a folder of them, got {str(path)!r}, which does not exist.",
            remedy="Correct the path; `privshard import FOLDER` makes a Parquet file of class folders.",
        )
    files = sorted(file for file in path.rglob("*.parquet") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise InputError(
            f"{key}: expected *.parquet files below {str(path)!r}, got none.",
            remedy="`privshard import FOLDER` makes a Parquet file of class folders.",
        )
    return files


def count_rows(path: str | Path) -> int:
    """The number of rows by the files' own footers; reads no row. Confidential where the data is."""
    total = 0
    for file in parquet_files(path):
        with _open(file) as parquet:
            total += parquet.metadata.num_rows
    return total


def column_names(path: str | Path, *, key: str = "data.path") -> frozenset[str]:
    """The names of the columns that any of the files has; reads no row. key: what messages call the path."""
    names: set[str] = set()
    for file in parquet_files(path, key=key):
        with _open(file) as parquet:
            names |= set(parquet.schema_arrow.names)
    return frozenset(names)


def read_rows(
    path: str | Path,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    required: frozenset[str] = frozenset(),
    batch_size: int = 64,
) -> Iterator[SourceRow]:
    """The rows of a Parquet file or of a folder of them, in the files' order.

    The columns of every file are checked before the first row is read; rows are checked as they come.

    columns: what the columns are called. required: roles ("subject", "split") that must exist; image and label
    always must. batch_size: rows that are in memory at once, beside the Parquet pages they come from (their size is
    the file's choice, at most a row group). Integer labels become their names where the file declares them
    (`read_public_classes`), else their digits. An empty subject is none; an image without bytes is read from its
    path, relative to the Parquet file.

    Raises InputError naming file, column and row, with what was expected.
    """
    files = parquet_files(path)
    present = _check_files(files, columns=columns, required=required)
    return (row for file in files for row in _rows_of(file, columns=columns, present=present, batch_size=batch_size))


def read_public_classes(path: str | Path, *, label: str = "label") -> tuple[str, ...] | None:
    """The class names that the files' Hugging Face metadata declares for the label column; None without any.

    They come from metadata alone, never from a row, so they may be used as a public constant. Files that disagree
    raise InputError.
    """
    found: dict[tuple[str, ...] | None, str] = {}
    for file in parquet_files(path):
        with _open(file) as parquet:
            found.setdefault(_class_names(parquet.schema_arrow, label), file.name)
    if len(found) > 1:
        shown = "; ".join(f"{name}: {list(names) if names else 'none'}" for names, name in found.items())
        raise InputError(
            f"data: expected all files to declare the same classes, got {shown}.",
            remedy="Read files of one dataset only.",
        )
    return next(iter(found))


def _check_files(files: list[Path], *, columns: Columns, required: frozenset[str]) -> frozenset[Role]:
    present: dict[frozenset[Role], str] = {}
    num_rows = 0
    for file in files:
        with _open(file) as parquet:
            num_rows += parquet.metadata.num_rows
            roles = check_schema(parquet.schema_arrow, columns=columns, required=required, file=file.name)
            present.setdefault(roles, file.name)
    if num_rows == 0:
        shown = files[0].name if len(files) == 1 else f"{len(files)} files"
        raise InputError(f"{shown}: expected at least one row, got none.", remedy="Check data.path.")
    if len(present) > 1:
        shown = "; ".join(f"{name} has {sorted(roles)}" for roles, name in present.items())
        raise InputError(
            f"data: expected all files to have the same columns, got: {shown}.",
            remedy="Add the missing column everywhere, or set data.subject or data.split to null.",
        )
    return next(iter(present))


def _open(file: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, buffer_size=_READ_AHEAD_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file.name}: expected a Parquet file, got something unreadable ({_first_line(error)}).",
            remedy="Write the file again; images in folders become Parquet with `privshard import FOLDER`.",
        ) from error


def _rows_of(file: Path, *, columns: Columns, present: frozenset[Role], batch_size: int) -> Iterator[SourceRow]:
    names = {role: name for role, name in columns.named() if role in present}
    row = 0
    with _open(file) as parquet:
        classes = _class_names(parquet.schema_arrow, columns.label)
        for batch in _batches(parquet, file=file, names=list(names.values()), batch_size=batch_size):
            values = {role: batch.column(name).to_pylist() for role, name in names.items()}
            missing = [None] * batch.num_rows
            for image, label, subject, split in zip(
                values["image"],
                values["label"],
                values.get("subject", missing),
                values.get("split", missing),
                strict=True,
            ):
                where = f"{file.name}, row {row}"
                yield SourceRow(
                    image=_image(image, folder=file.parent, where=f"{where}, column {columns.image!r}"),
                    label=_label(label, classes=classes, where=f"{where}, column {columns.label!r}"),
                    subject=None if subject in (None, "") else str(subject),
                    split=parse_split(split, where=f"{where}, column {columns.split!r}"),
                    source=file.name,
                    row=row,
                )
                row += 1


def _batches(parquet: pq.ParquetFile, *, file: Path, names: list[str], batch_size: int) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    try:
        yield from parquet.iter_batches(batch_size=batch_size, columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file.name}: expected readable rows, got a damaged file ({_first_line(error)}).",
            remedy="Write or copy the file again.",
        ) from error


def _image(value: Any, *, folder: Path, where: str) -> bytes:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is None and path:
        return _image_at(path, folder=folder, where=where)
    if not data:
        raise InputError(
            f"{where}: expected the bytes of an image, got {'null' if data is None else 'nothing'}.",
            remedy="Remove the row or store its image.",
        )
    return data


def _image_at(path: str, *, folder: Path, where: str) -> bytes:
    """The image beside the Parquet file; a path that leaves that folder is refused."""
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(
            f"{where}: expected a path inside the Parquet file's folder, got {path!r}.",
            remedy="Store the image's bytes in the row, or put the images beside the Parquet file.",
        )
    try:
        return (folder / relative).read_bytes()
    except OSError as error:
        raise InputError(
            f"{where}: expected bytes or a readable file, got no bytes and the path {path!r} ({error.strerror}).",
            remedy="Store the image's bytes in the row, or put the images beside the Parquet file.",
        ) from error


def _label(value: int | str | None, *, classes: tuple[str, ...] | None, where: str) -> str:
    if value is None or value == "":
        raise InputError(f"{where}: expected a label, got {value!r}.", remedy="Remove the row or label it.")
    if isinstance(value, int) and classes is not None:
        if not 0 <= value < len(classes):
            raise InputError(
                f"{where}: expected a class index from 0 to {len(classes) - 1}, got {value}.",
                remedy="Remove unlabelled rows (-1), or correct the file's class names.",
            )
        return classes[value]
    return str(value)


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
