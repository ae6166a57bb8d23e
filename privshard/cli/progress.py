"""News from running shards on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Display
    from rich.progress import TaskID

    from privshard.core.jobs import OnProgress, Progress

LINE_INTERVAL_S = 5.0


@contextlib.contextmanager
def progress_shown(command: str, *, stream: TextIO) -> Iterator[OnProgress]:
    """An `OnProgress` that shows its news on `stream` while the context lasts; nothing appears before the first."""
    if not stream.isatty():
        yield Lines(stream)
        return
    bars = Bars(command, stream=stream)
    try:
        yield bars
    finally:
        bars.stop()


@dataclass
class Lines:
    """One plain line for the start and the end of a shard's stage, and at most one in `interval_s` between them.

    A total of 0 is one that is not known yet.
    """

    stream: TextIO
    interval_s: float = LINE_INTERVAL_S
    clock: Callable[[], float] = time.monotonic
    _started: float | None = None
    _last: dict[int | None, tuple[str, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, progress: Progress) -> None:
        """Take one piece of news, from any thread."""
        with self._lock:
            now = self.clock()
            self._started = now if self._started is None else self._started
            stage, printed = self._last.get(progress.shard, ("", now))
            starts = stage != progress.stage
            ends = 0 < progress.total <= progress.done
            if not (starts or ends or now - printed >= self.interval_s):
                return
            self._last[progress.shard] = (progress.stage, now)
            elapsed = now - self._started
            amount = f"{progress.done}/{progress.total}" if progress.total else f"{progress.done}"
            with contextlib.suppress(OSError, ValueError):  # who reads it may have gone; the work has not
                self.stream.write(f"[{elapsed:8.1f} s] {_words(progress)} {amount}\n")
                self.stream.flush()


class Bars:
    """One bar for the whole and one for each shard that runs; a shard's bar hides when its stage is done.

    News without a shard moves the whole's bar; until there is any, that bar only shows that time passes.
    """

    def __init__(self, command: str, *, stream: TextIO) -> None:
        self._command = command
        self._stream = stream
        self._display: Display | None = None
        self._tasks: dict[int | None, TaskID] = {}
        self._stages: dict[int | None, str] = {}
        self._lock = threading.Lock()

    def __call__(self, progress: Progress) -> None:
        """Take one piece of news, from any thread."""
        with self._lock:
            display = self._display or self._start()
            if progress.shard not in self._tasks:
                self._tasks[progress.shard] = display.add_task("", total=None)
            task = self._tasks[progress.shard]
            if self._stages.get(progress.shard, progress.stage) != progress.stage:
                display.reset(task, total=progress.total or None)
            self._stages[progress.shard] = progress.stage
            display.update(
                task,
                description=_words(progress),
                completed=progress.done,
                total=progress.total or None,
                visible=progress.shard is None or progress.done < progress.total,
            )

    def stop(self) -> None:
        """Leave the last state on the terminal and give the line back."""
        with self._lock:
            if self._display is not None:
                self._display.stop()

    def _start(self) -> Display:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Display

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._display = Display(*columns, console=Console(file=self._stream), redirect_stdout=False)
        self._display.start()
        self._tasks[None] = self._display.add_task(self._command, total=None)
        return self._display


def _words(progress: Progress) -> str:
    return progress.stage if progress.shard is None else f"shard {progress.shard}: {progress.stage}"
