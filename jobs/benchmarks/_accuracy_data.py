"""Rows of a data set, partitioned as the product does it, and what the frozen base computes for them, kept on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from privshard.core.digest import json_digest
from privshard.core.method import Constants, Method
from privshard.core.partition import Partition
from privshard.data.examples import example_id, subject_of_image
from privshard.data.images import image_batches
from privshard.data.reader import read_rows
from privshard.models.base import Base
from privshard.training.encoding import encode

_KEY = b"privshard accuracy benchmark key"  # public data: nothing here is secret


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one split in canonical order."""

    ids: tuple[str, ...]
    images: tuple[bytes, ...]
    labels: tuple[str, ...]
    subjects: tuple[str, ...]

    def of_shard(self, shard: int, *, num_shards: int, seed: int) -> Tensor:
        """The positions of one shard's rows, by the product's keyed hash of the subject."""
        partition = Partition(bytes([seed % 256]) * 32, num_shards)
        return torch.tensor(
            [i for i, s in enumerate(self.subjects) if partition.shard_of(s) == shard], dtype=torch.long
        )


def load_rows(path: Path, *, limit: int | None = None) -> dict[str, Rows]:
    """Split ("train", "eval") -> its rows; a row without a subject is its own. limit: so many of each, by their ids."""
    found: dict[str, list[tuple[str, bytes, str, str]]] = {"train": [], "eval": []}
    for row in read_rows(path):
        split = row.split or "train"
        subject = row.subject or subject_of_image(row.image)
        name = example_id(_KEY, image=row.image, label=row.label, subject=subject)
        found[split].append((name, row.image, row.label, subject))
    columns = {
        split: zip(*sorted({row[0]: row for row in rows}.values())[:limit], strict=True)
        for split, rows in found.items()
    }
    return {split: Rows(*map(tuple, each)) for split, each in columns.items()}


def class_names(rows: Mapping[str, Rows]) -> tuple[str, ...]:
    """The classes of a data set, numbers by value."""
    names = {label for part in rows.values() for label in part.labels}
    return tuple(sorted(names, key=lambda name: (len(name), name) if name.isdigit() else (1 << 30, name)))


def encoded(
    method: Method, base: Base, rows: Rows, *, name: str, folder: Path | None, device: str, batch: int = 128
) -> Constants:
    """The constants of rows on `device`: read from `folder` where they are there, else computed and written, whole.

    name: of method and data set; rows and base are told apart by digest.
    """
    digest = json_digest([name, base.digest, list(rows.ids)])[:24]
    path = folder / f"{name}-{digest}.pt" if folder is not None else None
    if path is not None and path.exists():
        held = torch.load(path, map_location=device, weights_only=True)
        return {key: tensor.float() for key, tensor in held.items()}
    workers = 1 if device == "cpu" else 8
    batches = image_batches(rows.images, transform=base.transform, batch_size=batch, num_workers=workers)
    constants = encode(method, batches, num_rows=len(rows.ids), batch_size=batch, device=device)
    assert constants is not None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        torch.save(constants, part)
        part.rename(path)
    return constants
