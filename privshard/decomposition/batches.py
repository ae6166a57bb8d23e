"""Batches of public images, as functions of seed, phase and step.

Letters: B batch, M rows, 3HW an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_SHARE_OF_DEVICE = 0.4  # of a GPU's free memory that pixels may take


@dataclass(frozen=True)
class Augmentation:
    """crop: images are shifted by up to so many pixels, zeros beyond; flip: half of them are mirrored."""

    crop: int = 0
    flip: bool = False


class Batches:
    """Batches of normalized images (B, 3, H, W) and labels (B) on `device`.

    images_M3HW: 8-bit pixels of all rows; they move to a GPU once if they fit. mean, std: of the three channels. Within
    an epoch every training row comes once; the last few that don't fill a batch are left for the next epoch's order.
    """

    def __init__(
        self,
        images_M3HW: np.ndarray,
        labels_M: np.ndarray,
        *,
        train_rows: np.ndarray,
        eval_rows: np.ndarray,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation = Augmentation(),
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self._images, self._labels = images_M3HW, labels_M
        self._train_rows, self._eval_rows = train_rows, eval_rows
        self.batch_size = min(batch_size, len(train_rows))
        self._augmentation, self._seed, self._device = augmentation, seed, device
        self._order: tuple[tuple[int, int], np.ndarray] = ((-1, -1), train_rows)  # of the epoch at hand
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1) * 255
        self._resident = torch.from_numpy(np.asarray(images_M3HW)).to(device) if self._fits() else None

    def train(self, phase: int, step: int) -> tuple[Tensor, Tensor]:
        """The training batch of a step, augmented."""
        each = len(self._train_rows) // self.batch_size
        epoch, place = divmod(step, each)
        if self._order[0] != (phase, epoch):
            generator = np.random.default_rng([self._seed, phase, epoch])
            self._order = ((phase, epoch), generator.permutation(self._train_rows))
        images_B, labels_B = self._load(self._order[1][place * self.batch_size : (place + 1) * self.batch_size])
        key = np.random.SeedSequence([self._seed, phase, epoch, place, 1]).generate_state(1, np.uint64)[0]
        generator = torch.Generator(self._device).manual_seed(int(key >> 1))
        return augment(images_B, self._augmentation, generator), labels_B

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All held-out rows in order, as they are."""
        for start in range(0, len(self._eval_rows), self.batch_size):
            yield self._load(self._eval_rows[start : start + self.batch_size])

    def _load(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        labels_B = torch.from_numpy(self._labels[rows]).to(self._device)
        if self._resident is not None:
            images_B = self._resident[torch.from_numpy(rows).to(self._device)]
        else:
            images_B = torch.from_numpy(self._images[rows]).to(self._device)
        return (images_B.float() - self._mean) / self._std, labels_B

    def _fits(self) -> bool:
        if not self._device.startswith("cuda"):
            return False
        return self._images.nbytes < _SHARE_OF_DEVICE * torch.cuda.mem_get_info()[0]


def augment(images_B: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Shifted and mirrored images; random numbers come from `generator` alone, on the images' device."""
    B, _, height, width = images_B.shape
    device = images_B.device
    if how.crop:
        padded = F.pad(images_B, (how.crop,) * 4)
        shift = torch.randint(0, 2 * how.crop + 1, (2, B), generator=generator, device=device)
        rows = shift[0, :, None] + torch.arange(height, device=device)
        columns = shift[1, :, None] + torch.arange(width, device=device)
        place = torch.arange(B, device=device)
        images_B = padded[place[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
    if how.flip:
        mirrored = torch.rand(B, generator=generator, device=device) < 0.5
        images_B = torch.where(mirrored[:, None, None, None], images_B.flip(3), images_B)
    return images_B
