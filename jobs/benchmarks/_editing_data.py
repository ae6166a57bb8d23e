"""What the editing benchmark edits and measures on: error groups, sensitive examples, images for the locator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from privshard.data.images import image_batches
from privshard.data.pictures import read_pictures
from privshard.editing.groups import ErrorGroup, error_groups, split_groups
from privshard.editing.measure import sensitive
from privshard.models.base import Base
from privshard.store.objects import ObjectStore
from privshard.store.tensors import load_tensors, save_tensors

ERRORS, SAMPLE = "tiny_imagenet.parquet", "imagenet_sample.parquet"


@dataclass(frozen=True, eq=False)
class Pictures:
    """Encoded images with the index of their class, and what the model says about them."""

    contents: tuple[bytes, ...]
    labels_B: np.ndarray
    predictions_B: np.ndarray
    sensitive_B: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share that the model gets right."""
        return float((self.labels_B == self.predictions_B).mean())


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything that is edited and measured. tuned and reported share no label. sensitive, unlabeled: rows of sample;
    the locator is trained on the unlabeled ones, which are no sensitive examples."""

    base: Base
    errors: Pictures
    sample: Pictures
    tuned: tuple[ErrorGroup, ...]
    reported: tuple[ErrorGroup, ...]
    num_groups: int
    device: str

    @property
    def sensitive(self) -> list[int]:
        """Rows of the sample on which locality is measured."""
        return np.flatnonzero(self.sample.sensitive_B).tolist()

    @property
    def unlabeled(self) -> list[int]:
        """Rows of the sample that the locator, and the rank-one editor's keys, are learnt from."""
        return np.flatnonzero(~self.sample.sensitive_B).tolist()

    def pixels(self, pictures: Pictures, rows: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W) on the device."""
        return _pixels(self.base, [pictures.contents[row] for row in rows], self.device)


def load_bench(
    base: Base,
    *,
    data: Path,
    store: ObjectStore,
    device: str,
    limit: int | None,
    least: int,
    validation: int,
    test: int,
    max_members: int,
    margin: float,
    seed: int,
) -> Bench:
    """Judge all pictures once (kept in `store`), then form, draw and trim the groups."""
    errors = _judged(base, data / ERRORS, store, "errors", device=device, limit=limit, margin=margin)
    sample = _judged(base, data / SAMPLE, store, "sample", device=device, limit=limit, margin=margin)
    groups = error_groups(errors.labels_B, errors.predictions_B, least=least)
    tuned, reported = split_groups(groups, validation=validation, test=test, seed=seed)
    trimmed = [
        tuple(ErrorGroup(g.label, g.prediction, g.rows[:max_members]) for g in part) for part in (tuned, reported)
    ]
    return Bench(base, errors, sample, trimmed[0], trimmed[1], len(groups), device)


def _judged(
    base: Base, path: Path, store: ObjectStore, name: str, *, device: str, limit: int | None, margin: float
) -> Pictures:
    rows = read_pictures(path)[:limit]
    contents, labels_B = tuple(row.image for row in rows), np.array([int(row.label) for row in rows])
    kept = f"judged-{name}.safetensors"
    key = {"base": base.digest, "rows": str(len(rows)), "margin": repr(margin)}
    if store.exists(kept):
        arrays, held = load_tensors(store, kept)
        if held == key:
            return Pictures(contents, labels_B, arrays["predictions"], arrays["sensitive"])
    predictions, unsure = [], []
    with torch.no_grad():
        for start in range(0, len(contents), 256):
            logits_BC = base.view.model(_pixels(base, contents[start : start + 256], device))
            labels = torch.from_numpy(labels_B[start : start + 256]).to(device)
            predictions.append(logits_BC.argmax(dim=1).cpu().numpy())
            unsure.append(sensitive(logits_BC, labels, margin=margin).cpu().numpy())
    arrays = {"predictions": np.concatenate(predictions), "sensitive": np.concatenate(unsure)}
    save_tensors(store, kept, arrays, key)
    return Pictures(contents, labels_B, arrays["predictions"], arrays["sensitive"])


def _pixels(base: Base, contents: Sequence[bytes], device: str) -> Tensor:
    threads = min(16, os.cpu_count() or 1)
    batches = image_batches(contents, transform=base.transform, batch_size=len(contents), num_workers=threads)
    return next(iter(batches)).to(device)
