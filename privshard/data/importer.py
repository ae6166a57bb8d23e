"""Turn class folders of images into one Parquet file of the Hugging Face image layout."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from privshard.core.errors import InputError
from privshard.data.images import decode
from privshard.data.prefetch import in_chunks
from privshard.data.schema import EVAL_SPLITS, TRAIN_SPLITS, parse_split

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_A_GROUP = 64


@dataclass(frozen=True)
class ImportReport:
    """What an import found. classes: sorted; num_subjects: 0 without `subject_from`.

    skipped: files, relative to the folder, that don't look like images by name: no image suffix, or hidden.
    """

    num_rows: int
    num_subjects: int
    classes: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """An image file and what its path says about it."""

    path: PurePosixPath
    label: str
    subject: str | None
    split: str | None


def import_folder(
    folder: str | Path,
    *,
    out: str | Path,
    subject_from: str | None = None,
    split_from: str | None = None,
    classes: tuple[str, ...] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportReport:
    """Write `out`: a row for every image of FOLDER/<class>/… or of FOLDER/<split>/<class>/….

    The second form is meant where every first-level folder is called like a split (train, test, val, …). The label
    is the class folder's name; folders below it matter to the patterns alone. The images' bytes are copied as they
    are, every one after it was decoded to its end. `out` appears whole or not at all.

    subject_from, split_from: regular expressions, searched in each path relative to FOLDER (with "/"); the group
    named `subject` or `split`, else the first group, is the value. Every image must match. classes: public class
    names, written into the file's metadata for `read_public_classes`; without them none are, because folders may
    exist only because of the private images in them. on_progress: (images done, images in all).

    Raises InputError for an unreadable image or a path that fits none of this, naming it.
    """
    folder, out = Path(folder), Path(out)
    found, skipped = _survey(
        folder,
        subject_pattern=_pattern(subject_from, group="subject"),
        split_pattern=_pattern(split_from, group="split"),
    )
    labels = {item.label for item in found}
    if classes is not None and not labels <= set(classes):
        raise InputError(
            f"{folder}: expected class folders of {sorted(classes)}, got also {sorted(labels - set(classes))}.",
            remedy="Add the folder's name to the classes, or rename it.",
        )
    _write(folder, found=found, out=out, classes=classes, on_progress=on_progress)
    subjects = {item.subject for item in found if item.subject is not None}
    return ImportReport(
        num_rows=len(found), num_subjects=len(subjects), classes=tuple(sorted(labels)), skipped=tuple(skipped)
    )


def _survey(
    folder: Path, *, subject_pattern: re.Pattern[str] | None, split_pattern: re.Pattern[str] | None
) -> tuple[list[_Found], list[str]]:
    """All images below `folder`, sorted by path, and the files that are none."""
    if not folder.is_dir():
        raise InputError(f"Expected a folder of class folders, got {str(folder)!r}.", remedy="Correct the path.")
    first_level = {path.name.lower() for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    has_splits = bool(first_level) and first_level <= TRAIN_SPLITS | EVAL_SPLITS
    paths = sorted(PurePosixPath(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    suffixes = _image_suffixes()
    found, skipped = [], []
    for path in paths:
        hidden = any(part.startswith(".") for part in path.parts)
        if hidden or path.suffix.lower() not in suffixes:
            skipped.append(str(path))
            continue
        if len(path.parts) < (3 if has_splits else 2):
            expected = "<split>/<class>/<image>" if has_splits else "<class>/<image>"
            raise InputError(
                f"{folder / path}: expected {expected}, got {str(path)!r}.",
                remedy="Move the image into the folder of its class.",
            )
        split = parse_split(path.parts[0], where=str(path)) if has_splits else None
        if split_pattern is not None:
            split = parse_split(_captured(split_pattern, path, group="split"), where=str(path))
        subject = None if subject_pattern is None else _captured(subject_pattern, path, group="subject")
        found.append(_Found(path=path, label=path.parts[int(has_splits)], subject=subject, split=split))
    if not found:
        raise InputError(
            f"{folder}: expected images in class folders, got none ({len(skipped)} other files).",
            remedy="Give the folder that holds one folder for each class.",
        )
    return found, skipped


def _image_suffixes() -> frozenset[str]:
    from PIL import Image

    Image.init()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _pattern(expression: str | None, *, group: str) -> re.Pattern[str] | None:
    if expression is None:
        return None
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InputError(
            f"{group}-from: expected a regular expression, got {expression!r} ({error}).",
            remedy=rf"For people in file names such as ada_03.png: --{group}-from '([^/_]+)_\d+\.png$'.",
        ) from error
    if pattern.groups < 1:
        raise InputError(
            f"{group}-from: expected a regular expression with a group, got {expression!r}.",
            remedy="Put parentheses around the part that is meant.",
        )
    return pattern


def _captured(pattern: re.Pattern[str], path: PurePosixPath, *, group: str) -> str:
    match = pattern.search(str(path))
    value = match and match.group(group if group in pattern.groupindex else 1)
    if not value:
        came = "no match" if match is None else "an empty group"
        raise InputError(
            f"{path}: expected {pattern.pattern!r} to find the {group} in the path, got {came}.",
            remedy="Correct the expression or rename the file; every image needs one, or none.",
        )
    return value


def _write(
    folder: Path,
    *,
    found: list[_Found],
    out: Path,
    classes: tuple[str, ...] | None,
    on_progress: Callable[[int, int], None],
) -> None:
    import pyarrow.parquet as pq

    schema = _schema(found, classes=classes)
    if not out.parent.is_dir():
        raise InputError(f"{out}: expected an existing folder to write to, got none.", remedy="Create it first.")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with pq.ParquetWriter(partial, schema, compression="none", write_statistics=False) as writer:
            done = 0
            for chunk in in_chunks(_rows(folder, found=found, schema=schema), size=_ROWS_A_GROUP):
                writer.write_table(_table(chunk, schema=schema), row_group_size=_ROWS_A_GROUP)
                done += len(chunk)
                on_progress(done, len(found))
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _rows(folder: Path, *, found: list[_Found], schema: pa.Schema) -> Iterator[dict]:
    for item in found:
        image = (folder / item.path).read_bytes()
        try:
            decode(image)
        except InputError as error:
            raise InputError(f"{folder / item.path}: {error.message}", remedy=error.remedy) from error
        values = {
            "image": {"bytes": image, "path": str(item.path)},
            "label": item.label,
            "subject": item.subject,
            "split": item.split,
        }
        yield {name: values[name] for name in schema.names}


def _table(rows: list[dict], *, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=schema)


def _schema(found: list[_Found], *, classes: tuple[str, ...] | None) -> pa.Schema:
    import pyarrow as pa

    fields = [
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("label", pa.string()),
    ]
    features: dict[str, object] = {"image": {"_type": "Image"}, "label": {"dtype": "string", "_type": "Value"}}
    if classes is not None:
        features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    for name in ("subject", "split"):
        if any(getattr(item, name) is not None for item in found):
            fields.append(pa.field(name, pa.string()))
            features[name] = {"dtype": "string", "_type": "Value"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
