"""Watches one run: keeps its record, saves it, feeds metrics and the log, and ends the run when that is asked for."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from privshard.core.errors import PrivshardError
from privshard.core.jobs import OnProgress, Progress
from privshard.runtime.events import RunEvent
from privshard.runtime.metrics import RunMetrics
from privshard.runtime.record import RunRecord

LOG_ENV = "PRIVSHARD_LOG"
_SAVE_EVERY_S = 5.0


class CancelledError(PrivshardError):
    """Somebody cancelled the run."""


class EventLog:
    """One JSON object a line: what happened to which job, where, when; errors by class alone.

    Run ids, machines and process ids are all it names: no subject, no file, no message that could hold one, and no
    count or duration that private rows decide beyond the time stamps themselves.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @staticmethod
    def from_environment() -> EventLog | None:
        """The log that PRIVSHARD_LOG names: a file to append to, or "-" for stderr; None without it."""
        place = os.environ.get(LOG_ENV)
        if not place:
            return None
        return EventLog(sys.stderr if place == "-" else open(place, "a", encoding="utf-8", buffering=1))

    def write(self, event: RunEvent) -> None:
        """Append one event."""
        place = event.place
        line = {
            "time": datetime.fromtimestamp(event.at_s, UTC).isoformat(timespec="milliseconds"),
            "event": event.what,
            "run": event.run_id,
            **({"node": place.node, "pid": place.pid} if place else {}),
            **({"error": event.error} if event.error else {}),
        }
        try:
            self._stream.write(json.dumps(line) + "\n")
        except (OSError, ValueError):  # a full disk or a closed pipe: the work goes on without its log
            return


class Watch:
    """One run under observation. What observes may fail; the run goes on.

    save: takes the record's snapshot, now and then and at the end. gauges: public numbers for the metrics.
    cancelled: asked at every tick.
    """

    def __init__(
        self,
        record: RunRecord,
        *,
        on_progress: OnProgress,
        save: Callable[[dict[str, Any]], None] = lambda _: None,
        gauges: Callable[[], Mapping[str, float]] = dict,
        workspace_id: str = "",
        nominal_units: float = 0.0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.record = record
        self._on_progress = on_progress
        self._save = save
        self._gauges = gauges
        self._cancelled = cancelled
        self._metrics = RunMetrics(workspace_id=workspace_id, nominal_units=nominal_units)
        self._log = EventLog.from_environment()
        self._saved_s = time.monotonic()

    def on_event(self, event: RunEvent) -> None:
        """Take one step of one job."""
        self.record.on_event(event)
        if self._log is not None:
            self._log.write(event)

    def on_progress(self, progress: Progress) -> None:
        """Take one piece of news, and pass it on."""
        self.record.on_progress(progress)
        self._on_progress(progress)

    def on_tick(self) -> None:
        """Save and measure when it is time to; raises CancelledError where that is asked for."""
        if self._cancelled():
            raise CancelledError("The run was cancelled.", remedy="Run the same command again to resume.")
        if time.monotonic() - self._saved_s >= _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Save the record and update the metrics; neither may break the run."""
        self._keep(self.record.snapshot())

    def _keep(self, snapshot: dict[str, Any]) -> None:
        try:
            self._metrics.update(self.record, self._gauges())
            self._save(snapshot)
        except (PrivshardError, OSError):  # the storage that fails here fails the run where it matters
            pass
        self._saved_s = time.monotonic()

    def end(self, error: BaseException | None) -> None:
        """Keep how the run ended. The record itself goes on: its owner ends it when everything else is done too."""
        if error is None:
            self._keep(self.record.ended("done"))
        elif isinstance(error, CancelledError | KeyboardInterrupt | SystemExit | GeneratorExit):
            self._keep(self.record.ended("cancelled"))
        else:
            self._keep(self.record.ended("failed", error))
