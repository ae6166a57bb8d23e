"""What a model costs on this machine: the time of one image, the memory it takes, and its accuracy."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import accumulate
from statistics import median

import torch
from torch import Tensor, nn


@torch.no_grad()
def latency_ms(model: nn.Module, images_B: Tensor, *, repeats: int = 10) -> float:
    """Median wall time of a forward pass over `images_B`, in milliseconds, after two passes that don't count."""
    times = []
    for turn in range(repeats + 2):
        _wait(images_B)
        started = time.perf_counter()
        model(images_B)
        _wait(images_B)
        if turn >= 2:
            times.append(1000 * (time.perf_counter() - started))
    return median(times)


@torch.no_grad()
def memory_bytes(model: nn.Module, images_B: Tensor) -> int:
    """Weights and buffers, the images, and the most that a forward pass holds besides them at any moment.

    Counts what torch's allocator hands out; the process itself and libraries come on top.
    """
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]) + images_B.nbytes
    if images_B.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(images_B)
        _wait(images_B)
        return held + torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model(images_B)
    results = profile.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    return held + max(accumulate((size for _, size in sorted(changes, key=lambda change: change[0])), initial=0))


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The fraction of labels that the largest logit names."""
    right = total = 0
    for images_B, labels_B in batches:
        right += int((model(images_B).argmax(dim=1) == labels_B).sum())
        total += len(labels_B)
    return right / total


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()
