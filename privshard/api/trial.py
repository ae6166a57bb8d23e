"""Trainings that are only scored: a recipe on some of its rows, in memory, measured on others.

B rows, S shards. Nothing here is private or released: rows, scores and components stay in this process.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from privshard.api import constants, worker
from privshard.api.methods import make_method
from privshard.api.recipe import Recipe
from privshard.api.scoring import right
from privshard.api.setup import Setup, make_setup
from privshard.core.digest import content_digest
from privshard.core.errors import InputError
from privshard.core.method import Constants, Method, initial
from privshard.core.partition import Partition
from privshard.data.examples import SourceRow, subject_of_image
from privshard.data.images import image_batches
from privshard.models.base import Base
from privshard.privacy.stream import insecure_key
from privshard.training.gather import take
from privshard.training.shard import Trained, train_shard

_FOLDS, _SHARDS = b"\1" * 32, b"\2" * 32
"""Public keys: which fold, and which shard, a subject falls in. A workspace draws its own, secret ones."""


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a recipe's data: encoded images, labels, subjects, and which rows are test."""

    images: tuple[bytes, ...]
    labels: tuple[str, ...]
    subjects: tuple[str, ...]
    test_B: np.ndarray

    @staticmethod
    def of(source: Iterator[SourceRow], *, limit: int | None = None) -> Rows:
        """The rows of a source, at most `limit` train and `limit` test rows: those whose images have the least digests,
        whatever their order. Rows without a split are test with their subject, by a public tenth."""
        found: dict[bool, list[tuple[int, int, SourceRow, str]]] = {False: [], True: []}
        tenth = Partition(_FOLDS, 1)
        for position, row in enumerate(source):
            subject = row.subject or subject_of_image(row.image)
            test = tenth.held_out(subject) if row.split is None else row.split == "eval"
            part = found[test]
            heapq.heappush(part, (-int(content_digest(row.image), 16), -position, row, subject))
            if limit is not None and len(part) > limit:
                heapq.heappop(part)
        if not all(found.values()):
            raise InputError(
                "Expected train and test rows to choose and to score with, got "
                f"{len(found[False])} and {len(found[True])}.",
                remedy="Give the data a split column, or more subjects.",
            )
        kept = sorted(
            (-place, row.image, row.label, subject, test)
            for test, part in found.items()
            for _, place, row, subject in part
        )
        _, images, labels, subjects, test = zip(*kept, strict=True)
        return Rows(images, labels, subjects, np.array(test))

    def fold_B(self, folds: int) -> np.ndarray:
        """The fold, 0 to folds - 1, of every row: that of its subject, by a public hash."""
        partition = Partition(_FOLDS, folds)
        return np.array([partition.shard_of(subject) for subject in self.subjects])


@dataclass(frozen=True)
class Score:
    """What one training scored. accuracy: share of the scored rows whose largest logit is the label's; rows with logits
    that aren't finite count as wrong. peak_bytes: the most GPU memory while training; None on a CPU."""

    accuracy: float
    num_rows: int
    train_s: float
    peak_bytes: int | None


@dataclass(frozen=True, eq=False)
class Trial:
    """A recipe made ready to train many times: base, method and plan, and what the base computes once for all rows."""

    recipe: Recipe
    setup: Setup
    method: Method
    constants: Constants
    labels_B: Tensor
    rows: Rows

    @staticmethod
    def of(recipe: Recipe, rows: Rows, *, pixels: Callable[[Base], Tensor]) -> Trial:
        """Calibrate, build the method, and encode all rows. pixels: the images (B, 3, H, W) as a base takes them."""
        classes = constants.classes_of(recipe, lambda: set(rows.labels))
        nominal = constants.nominal_units(recipe)
        if nominal is None:
            train = [subject for subject, test in zip(rows.subjects, rows.test_B, strict=True) if not test]
            nominal = len(train) if recipe.privacy.unit == "example" else len(set(train))
        planned = make_setup(recipe, classes=classes, nominal=float(nominal), count_noise_multiplier=None)
        flags = recipe.flags()
        device = worker.pick_device(flags)
        method = make_method(recipe.method_spec(), planned.base.view.to(device), core=planned.base.core)
        images = pixels(planned.base)
        dtype = getattr(torch, flags.dtype)
        parts: list[Constants] = []
        for start in range(0, len(images), flags.micro_batch):
            batch = images[start : start + flags.micro_batch].to(device, torch.float32)
            with (
                torch.no_grad(),
                torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32),
            ):
                part = method.encode(batch)
            parts.append({name: x.to(dtype if name in method.wide else torch.float32) for name, x in part.items()})
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        index = {name: position for position, name in enumerate(classes)}
        labels_B = torch.tensor([index[label] for label in rows.labels], device=device)
        return Trial(recipe, planned.setup, method, joined, labels_B, rows)

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained beside the head."""
        start = initial(self.method, device="cpu")
        return sum(tensor.numel() for name, tensor in start.items() if not name.startswith("head."))

    def run(self, *, lr: float, seed: int, train_B: np.ndarray, score_B: np.ndarray) -> Score:
        """Train one component a shard on the rows `train_B` at learning rate `lr`, compose them as the recipe says, and
        score on the rows `score_B`. A function of the seed, up to the device's rounding."""
        device = self.labels_B.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        components = [self._component(shard, rows, lr=lr, seed=seed) for shard, rows in self._shards(train_B)]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        train_s = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        flags = self.recipe.flags()
        correct = right(
            self.method,
            self.constants,
            components,
            rule=self.recipe.compose.rule,
            rows_B=score_B,
            labels_B=self.labels_B,
            max_rows=flags.micro_batch * self.method.batch_scale,
            dtype=getattr(torch, flags.dtype),
        )
        return Score(correct / len(score_B), len(score_B), train_s, peak)

    def _shards(self, train_B: np.ndarray) -> list[tuple[int, np.ndarray]]:
        partition = Partition(_SHARDS, self.recipe.shards)
        shard_B = np.array([partition.shard_of(self.rows.subjects[row]) for row in train_B])
        return [(shard, train_B[shard_B == shard]) for shard in range(self.recipe.shards)]

    def _component(self, shard: int, rows: np.ndarray, *, lr: float, seed: int) -> Trained:
        device, flags, plan = self.labels_B.device, self.recipe.flags(), self.setup.plan
        by_subject = plan.unit == "subject"
        return train_shard(
            self.method,
            take(self.constants, rows, device=device) if len(rows) else None,
            labels_B=self.labels_B[torch.from_numpy(rows).to(device)],
            unit_of_row=[self.rows.subjects[row] if by_subject else f"{row:09d}" for row in rows],
            plan=plan,
            params=replace(self.setup.training, lr=lr),
            root_key=insecure_key(seed, shard=shard, attempt=0),
            max_rows=flags.micro_batch * self.method.batch_scale,
            dtype=getattr(torch, flags.dtype),
        )


def pixels_of(rows: Rows, base: Base, *, threads: int) -> Tensor:
    """All images (B, 3, H, W) as the base takes them, rounded to float16: half the memory, and 11 bits for values that
    had 8 in the file."""
    batches = image_batches(rows.images, transform=base.transform, batch_size=256, num_workers=threads)
    return torch.cat([batch.to(torch.float16) for batch in batches])
