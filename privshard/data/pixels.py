"""Public images decoded once: a map of 8-bit pixels on disk that training draws batches from.

Letters: M rows, 3HW an image.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image

from privshard.core.errors import InputError
from privshard.data.examples import SourceRow
from privshard.data.images import decode
from privshard.data.prefetch import ordered_map
from privshard.store.disk import make_folder, write_whole

if TYPE_CHECKING:
    from torch import Tensor

_HELD_OUT = 26  # of 256: about a tenth


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded public rows. images_M3HW: uint8, a map of the file. digest: of all rows, images and labels, in order."""

    images_M3HW: np.ndarray
    labels_M: np.ndarray
    train_rows: np.ndarray
    eval_rows: np.ndarray
    classes: tuple[str, ...]
    digest: str


def cache_pixels(
    rows: Iterable[SourceRow],
    *,
    num_rows: int,
    folder: Path,
    prepare: Callable[[Image], Tensor],
    classes: Sequence[str] | None,
    public: bool,
    num_workers: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pixels:
    """Decode `rows` into `folder`, or map what an earlier call left there.

    prepare: image -> (3, H, W) in [0, 1]. classes: None takes the labels that occur, which public data may show. Rows
    that name no split are held out by their image's digest, about one in ten. public: whether somebody vouches that the
    rows are public although they name subjects.

    Raises InputError for a row that names a subject without that, for an unknown label, and where nothing trains.
    """
    index = folder / "index.json"
    if not index.exists():
        make_folder(folder)
        entries = _decode(
            rows,
            num_rows=num_rows,
            path=folder / "pixels.npy",
            prepare=prepare,
            public=public,
            num_workers=num_workers,
            on_progress=on_progress,
        )
        write_whole(index, json.dumps(entries).encode())
    entries = json.loads(index.read_text())
    images_M3HW = np.load(folder / "pixels.npy", mmap_mode="r")
    return _pixels(entries, images_M3HW, classes)


def is_held_out(row: SourceRow) -> bool:
    """Whether a public row is kept for measuring: by its split, or, where it names none, about one image in ten."""
    return hashlib.sha256(row.image).digest()[0] < _HELD_OUT if row.split is None else row.split == "eval"


def _decode(
    rows: Iterable[SourceRow],
    *,
    num_rows: int,
    path: Path,
    prepare: Callable[[Image], Tensor],
    public: bool,
    num_workers: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, list | str]:
    def pixels(row: SourceRow) -> tuple[SourceRow, np.ndarray]:
        _check_public(row, public=public)
        return row, np.asarray((prepare(decode(row.image)) * 255).round().numpy(), dtype=np.uint8)

    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    labels, held_out, state, images_M3HW = [], [], hashlib.sha256(), None
    try:
        for place, (row, image_3HW) in enumerate(ordered_map(pixels, rows, num_workers=num_workers)):
            if images_M3HW is None:
                shape = (num_rows, *image_3HW.shape)
                images_M3HW = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            images_M3HW[place] = image_3HW
            state.update(hashlib.sha256(row.image).digest() + row.label.encode() + b"\0")
            labels.append(row.label)
            held_out.append(is_held_out(row))
            on_progress(place + 1, num_rows)
        if images_M3HW is None or all(held_out):
            raise InputError("data: expected rows to train on, got none.", remedy="Check data.path and data.split.")
        images_M3HW.flush()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return {"labels": labels, "held_out": held_out, "digest": state.hexdigest()}


def _check_public(row: SourceRow, *, public: bool) -> None:
    """A base is public knowledge: nothing that is learnt here is protected, accounted for or ever removed."""
    if row.subject is not None and not public:
        raise InputError(
            f"{row.where}: names a subject, but a decomposition makes a base, and a base must be public knowledge: "
            "what it learns has no differential privacy, no ledger, and can't be forgotten.",
            remedy="Use `privshard train` for personal data. If these rows are public although they name subjects, say "
            "so: data.public: true.",
        )


def _pixels(entries: dict, images_M3HW: np.ndarray, classes: Sequence[str] | None) -> Pixels:
    labels = entries["labels"]
    if classes is None:
        classes = sorted(set(labels), key=lambda name: (len(name), name) if name.isdigit() else (1 << 30, name))
    position = {name: place for place, name in enumerate(classes)}
    unknown = sorted(set(labels) - position.keys())
    if unknown:
        raise InputError(
            f"data.classes: expected every label among the {len(position)} classes, got also {', '.join(unknown[:3])}.",
            remedy="Correct data.classes, or leave it out to take the labels that occur.",
        )
    held_out = np.array(entries["held_out"])
    return Pixels(
        images_M3HW=images_M3HW,
        labels_M=np.array([position[label] for label in labels]),
        train_rows=np.flatnonzero(~held_out),
        eval_rows=np.flatnonzero(held_out),
        classes=tuple(classes),
        digest=entries["digest"],
    )
