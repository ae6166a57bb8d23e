"""What a computation holds and does, counted exactly instead of timed: bytes alive at the worst moment, operations."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered, storages that operations make: `peak` bytes alive at once, `operations` that made any.

    Whatever was there before doesn't count, so parameters and a warmed-up optimizer's state stay out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.operations = self._now = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        made = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in _tensors(out)}
        new = {key: storage for key, storage in made.items() if key not in given}
        self.operations += bool(new)
        for key, storage in new.items():
            if key not in self._alive:
                self._watch(key, storage)
        self.peak = max(self.peak, self._now)
        return out

    def _watch(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()

        def gone(_: object) -> None:
            del self._alive[key]
            self._now -= size

        self._now += size
        self._alive[key] = weakref.ref(storage, gone)


def live_bytes(function: Callable[[], object]) -> LiveBytes:
    """The counts of one call, after one that isn't counted."""
    function()
    with LiveBytes() as found:
        function()
    return found


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
