"""Prometheus metrics through Ray: public numbers and operational totals, never anything about a person or one shard."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from privshard.runtime.record import RunRecord

STATES = ("queued", "starting", "running", "collecting", "done", "failed")
GAUGES: Mapping[str, str] = {
    "privshard_epsilon_spent": "Upper bound spent by the shard that spent most; public, from the ledger.",
    "privshard_epsilon_limit": "Upper bound that no shard may exceed; public.",
    "privshard_removals_open": "Removal requests that are not completed.",
    "privshard_removal_seconds_left": "Seconds to the earliest deadline of an open removal request; negative: missed.",
}


class RunMetrics:
    """The metrics of one run, labelled by the workspace's random id alone.

    Exported: what the ledger promises (epsilon), how many jobs are in which state, steps done (their totals are public
    constants), and steps times the public nominal number of units a step, a second. Not exported: true counts of rows
    or subjects, anything by shard, durations of single shards, metrics on held-out rows. The totals' speed still
    depends on private rows a little: scrape it where operators may see it, and don't publish it.

    Where this process is no part of a Ray cluster, nothing is exported.
    """

    def __init__(self, *, workspace_id: str, nominal_units: float) -> None:
        self._labels = {"workspace": workspace_id}
        self._nominal_units = nominal_units
        self._made: dict[str, Any] = {}
        self._steps = 0
        self._at_s = time.monotonic()

    def update(self, record: RunRecord, gauges: Mapping[str, float]) -> None:
        """Set every metric to what is true now. gauges: those of `GAUGES`, without prefix; unknown ones are left."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        now, counts, steps = time.monotonic(), record.counts, record.steps_done
        for name, help_text in GAUGES.items():
            value = gauges.get(name.removeprefix("privshard_"))
            if value is not None:
                self._gauge(name, help_text).set(value, tags=self._labels)
        for state in STATES:
            gauge = self._gauge("privshard_jobs", "Jobs by state.", "state")
            gauge.set(counts.get(state, 0), tags={**self._labels, "state": state})
        new = max(0, steps - self._steps)
        if new:
            self._counter("privshard_steps", "Steps done by all jobs.").inc(new, tags=self._labels)
        rate = new * self._nominal_units / max(1e-9, now - self._at_s)
        name = "privshard_nominal_examples_per_second"
        self._gauge(name, "Steps a second of all jobs, times the public nominal units a step.").set(
            rate, tags=self._labels
        )
        self._steps, self._at_s = steps, now

    def _gauge(self, name: str, help_text: str, *labels: str) -> Any:
        if name not in self._made:
            from ray.util.metrics import Gauge

            self._made[name] = Gauge(name, description=help_text, tag_keys=("workspace", *labels))
        return self._made[name]

    def _counter(self, name: str, help_text: str) -> Any:
        if name not in self._made:
            from ray.util.metrics import Counter

            self._made[name] = Counter(name, description=help_text, tag_keys=("workspace",))
        return self._made[name]
