"""Private training from images in memory to components, against one inference pass over the same images.

    python -m jobs.benchmarks.end_to_end --model vit_large_patch16_224 --examples 20000 --shards 8 --epochs 30

One device plays all shards in turn: fill a shard's cache, then train on it with DP-SGD, noise included. What is
compiled is compiled before the clock starts, for inference and for training alike.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jobs.benchmarks._measure import Measured, measure
from jobs.benchmarks._models import NUM_CLASSES, precision, random_images, random_vit
from jobs.benchmarks._report import finish, parser, row
from privshard.core.jobs import TrainingParams
from privshard.core.method import Constants, LinearMethod
from privshard.core.privacy import MechanismPlan
from privshard.models.vit import ViTView
from privshard.tangent.engine import tangent_engine
from privshard.training.encoding import encode
from privshard.training.shard import train_shard

INFERENCE = "inference of the plain model"
FILL = "fill the caches"
WHOLE = "fill the caches and train"


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    options = _options(given)
    device = options.device
    view = random_vit(options.model, device=device)
    run = _Run(view, tangent_engine(view, blocks=1), options)
    cases: dict[str, Callable[[], object]] = {
        INFERENCE: run.inference,
        FILL: partial(run.shards, train=False),
        WHOLE: partial(run.shards, train=True),
    }
    measured = measure(cases, examples=options.examples, device=device, warm_up=1, repeats=3, limit_s=40.0)
    rows = [row(found, base_s=measured[INFERENCE].median_s) for found in measured.values()]
    notes = {
        "an epoch over the caches, of the time to fill them": _epoch_share(measured, epochs=options.epochs),
        "ratio to": INFERENCE,
        "shards": options.shards,
        "steps of each, every example in each": options.epochs,
        "compiled": device.startswith("cuda"),
    }
    return finish("end_to_end", rows, arguments=options, notes=notes)


def _epoch_share(measured: Mapping[str, Measured], *, epochs: int) -> float | None:
    """The time of one pass of DP-SGD over the caches as a share of the pass that filled them."""
    fill_s, whole_s = measured[FILL].median_s, measured[WHOLE].median_s
    return None if fill_s is None or whole_s is None else (whole_s - fill_s) / epochs / fill_s


def _options(given: Sequence[str] | None) -> Namespace:
    found = parser((__doc__ or "").splitlines()[0], model="deit_tiny_patch16_224", batch=256)
    found.add_argument("--examples", type=int, default=20_000, help="images in all")
    found.add_argument("--shards", type=int, default=8)
    found.add_argument("--epochs", type=int, default=30, help="passes of DP-SGD over each shard")
    return found.parse_args(given)


class _Run:
    """The images of every shard, on the device, and what is done with them."""

    def __init__(self, view: ViTView, method: LinearMethod, options: Namespace) -> None:
        self._method, self._options = method, options
        self._device, self._batch = options.device, options.batch
        self._compiled = self._device.startswith("cuda")
        self._dtype = precision(self._device)
        self._images = random_images(view, options.batch, device=self._device).to(self._dtype)
        self._model = torch.compile(view.model) if self._compiled else view.model

    def inference(self) -> None:
        """Every image through the model once."""
        narrow = self._dtype != torch.float32
        with torch.no_grad(), torch.autocast(torch.device(self._device).type, dtype=self._dtype, enabled=narrow):
            for images in self._batches(self._options.examples, whole=True):
                self._model(images)

    def shards(self, *, train: bool) -> None:
        """Fill the cache of each shard, and train on it."""
        for shard in range(self._options.shards):
            num = len(range(shard, self._options.examples, self._options.shards))
            constants = self._fill(num)
            if train:
                self._train(constants, num)
            del constants

    def _batches(self, num: int, *, whole: bool = False) -> list[Tensor]:
        """Views of the same images, so that memory holds one batch; the last one whole where shapes must not change."""
        starts = range(0, num, self._batch)
        return [self._images if whole else self._images[: num - start] for start in starts]

    def _fill(self, num: int) -> Constants:
        found = encode(
            self._method,
            self._batches(num),
            num_rows=num,
            batch_size=self._batch,
            device=self._device,
            dtype=self._dtype,
            compiled=self._compiled,
        )
        assert found is not None
        return found

    def _train(self, constants: Constants, num: int) -> None:
        plan = MechanismPlan("example", 1.0, self._options.epochs, 1.0, 5.0, float(num), 1e-5, "rdp", mean_releases=1)
        train_shard(
            self._method,
            constants,
            labels_B=torch.arange(num, device=self._device) % NUM_CLASSES,
            unit_of_row=[f"{row:09d}" for row in range(num)],
            plan=plan,
            params=TrainingParams(lr=0.3, momentum=0.9, average_from=0.5),
            root_key=os.urandom(32),
            max_rows=4096,
            dtype=self._dtype,
            compiled=self._compiled,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
