"""What a model costs on this machine: the time of one image, the memory it takes, and its accuracy."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer


@torch.no_grad()
def latency_ms(model: nn.Module, images_B: Tensor, *, at_least_s: float = 1.0) -> float:
    """Median wall time of a forward pass over `images_B`, in milliseconds, of passes that take `at_least_s` together,
    after some that don't count; on as many threads as torch has."""
    timer = Timer("model(images)", globals={"model": model, "images": images_B}, num_threads=torch.get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=at_least_s).median


@torch.no_grad()
def memory_bytes(model: nn.Module, images_B: Tensor) -> int:
    """Weights and buffers, the images, and the most that a forward pass holds besides them at any moment.

    Counts tensors: on a GPU all that torch's allocator hands out, elsewhere what operations return. What a kernel needs
    within itself on a CPU, the process and its libraries come on top.
    """
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]) + images_B.nbytes
    if images_B.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(images_B)
        _wait(images_B)
        return held + torch.cuda.max_memory_allocated() - before
    with _Held([*model.parameters(), *model.buffers(), images_B]) as tracked:
        model(images_B)
    return held + tracked.peak


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The fraction of labels that the largest logit names."""
    right = total = 0
    for images_B, labels_B in batches:
        right += int((model(images_B).argmax(dim=1) == labels_B).sum())
        total += len(labels_B)
    return right / total


class _Held(TorchDispatchMode):
    """Follows the storages that operations make, and the most that was alive at once. known: storages not to count."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()
