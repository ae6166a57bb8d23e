"""Where the constants of a shard go while they are computed: memory that is allocated once, files, both."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from privshard.core.method import Constants
from privshard.store.rows import RowWriter

_MAX_WAITING = 2


@dataclass(frozen=True)
class RowLayout:
    """The type and shape of one row of a constant."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


Layouts = Mapping[str, RowLayout]


class Output(Protocol):
    """Where constants go, row by row."""

    def put(self, start: int, part: Constants) -> None:
        """Take consecutive rows from row `start` on."""
        ...

    def finish(self) -> Constants:
        """All rows, once they are there; none where they are kept elsewhere."""
        ...


Place = Callable[[Layouts], Output]


class Held:
    """Constants in memory that is allocated once, on one device."""

    def __init__(self, layouts: Layouts, *, num_rows: int, device: str) -> None:
        self._all = {
            name: torch.empty(num_rows, *layout.shape, dtype=layout.dtype, device=device)
            for name, layout in layouts.items()
        }

    def put(self, start: int, part: Constants) -> None:
        """Copy rows to where they belong."""
        for name, rows in part.items():
            self._all[name][start : start + len(rows)].copy_(rows)

    def finish(self) -> Constants:
        """All rows."""
        return self._all


class Stored:
    """Constants in a row file; a row of the file holds `copies` consecutive rows, the copies of one example."""

    def __init__(self, writer: RowWriter, *, copies: int) -> None:
        self._writer, self._copies = writer, copies

    def put(self, start: int, part: Constants) -> None:
        """Write rows, on the CPU, whole examples of them."""
        blocks = {name: _bytes(rows, self._copies) for name, rows in part.items()}
        self._writer.put(start // self._copies, blocks)

    def finish(self) -> Constants:
        """None: they are in the file."""
        return {}


class Behind:
    """Hands rows on to other outputs, on the CPU and on a thread of its own, while the next ones are computed.

    At most two batches wait. An error of an output is raised by a later `put`, or by `finish`.
    """

    def __init__(self, outputs: list[Output], pool: ThreadPoolExecutor) -> None:
        self._outputs, self._pool = outputs, pool
        self._waiting: deque[Future[None]] = deque()

    def put(self, start: int, part: Constants) -> None:
        """Start to move rows; the caller may go on."""
        moved = {name: rows.to("cpu", non_blocking=True) for name, rows in part.items()}
        event = None
        if any(rows.is_cuda for rows in part.values()):
            event = torch.cuda.Event()
            event.record()
        self._waiting.append(self._pool.submit(self._hand_on, event, start, moved))
        while len(self._waiting) > _MAX_WAITING:
            self._waiting.popleft().result()

    def finish(self) -> Constants:
        """All rows that the outputs hold."""
        while self._waiting:
            self._waiting.popleft().result()
        return {name: rows for output in self._outputs for name, rows in output.finish().items()}

    def _hand_on(self, event: torch.cuda.Event | None, start: int, part: Constants) -> None:
        if event is not None:
            event.synchronize()
        for output in self._outputs:
            output.put(start, part)


def _bytes(rows: Tensor, copies: int) -> np.ndarray:
    """(rows, …) -> uint8 (examples, bytes of one example's rows)."""
    flat = rows.contiguous().view(torch.uint8) if rows.ndim > 1 else rows.contiguous()[:, None].view(torch.uint8)
    return flat.reshape(len(rows) // copies, -1).numpy()
