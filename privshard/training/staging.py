"""Batches of images on their way to a device: of one shape, and on a GPU copied while the last one is computed on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def staged(batches: Iterable[Tensor], *, device: str, size: int | None) -> Iterator[tuple[Tensor, int]]:
    """Each batch on `device`, with the number of its rows that count.

    size: pad every batch to this many rows with zeros, so that what computes on it sees one shape; None leaves them as
    they are. On a GPU, images from the CPU pass through two pinned buffers and a stream of their own: while the caller
    computes on one batch, the next one is decoded and copied. A yielded tensor is valid until the next one is asked
    for: work on it that was submitted before that is waited for, on the GPU, before it is overwritten.
    """
    if not device.startswith("cuda"):
        for images in batches:
            yield _padded(images.to(device), size), len(images)
        return
    lanes: list[_Lane] = []
    stream = torch.cuda.Stream(device)
    for number, images in enumerate(batches):
        if images.is_cuda:
            yield _padded(images, size), len(images)
            continue
        if len(lanes) < 2:
            lanes.append(_Lane(size or len(images), images, device))
        lane = lanes[number % 2]
        yield lane.copy(images, stream), len(images)
        lane.used.record()


class _Lane:
    """A pinned buffer with its twin on the GPU, and when each of them is free."""

    def __init__(self, rows: int, like: Tensor, device: str) -> None:
        self._host = torch.zeros(rows, *like.shape[1:], dtype=like.dtype, pin_memory=True)
        self._twin = torch.zeros(rows, *like.shape[1:], dtype=like.dtype, device=device)
        self._copied, self.used = torch.cuda.Event(), torch.cuda.Event()
        self._held = 0
        self.used.record()  # the zeros are there

    def copy(self, images: Tensor, stream: torch.cuda.Stream) -> Tensor:
        """Start to copy; the copy is there for work that is submitted from now on. Waits until the pinned buffer's last
        copy has left it, not for the GPU's other work."""
        self._copied.synchronize()
        self._host[: len(images)].copy_(images)
        self._host[len(images) : self._held].zero_()
        self._held = len(images)
        with torch.cuda.stream(stream):
            stream.wait_event(self.used)
            self._twin.copy_(self._host, non_blocking=True)
            self._copied.record(stream)
        torch.cuda.current_stream().wait_event(self._copied)
        return self._twin


def _padded(images: Tensor, size: int | None) -> Tensor:
    if size is None or len(images) >= size:
        return images
    return torch.cat([images, images.new_zeros(size - len(images), *images.shape[1:])])
