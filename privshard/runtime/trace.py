"""A run's record as a Chrome trace: machines are processes, workers are threads, what a job did are spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CONTROLLER = "controller"


def chrome_trace(record: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object that chrome://tracing and Perfetto open; times in microseconds from the run's start.

    Spans that are open when the record was written end there.
    """
    zero, last = record["started_s"], record["ended_s"] or record["updated_s"]
    nodes = sorted({job["node"] for job in record["jobs"] if job["node"]})
    numbers = {_CONTROLLER: 0, **{node: number for number, node in enumerate(nodes, start=1)}}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": node}}
        for node, number in numbers.items()
    ]
    for name, begin, end in record["stages"]:
        events.append(_span(name, begin - zero, end - begin, pid=0, tid=0, args={}))
    for row, job in enumerate(record["jobs"], start=1):
        for what, begin, end in job["spans"]:
            here = what in ("running", "collecting", "finished") and job["node"]
            pid, tid = (numbers[job["node"]], job["pid"]) if here else (0, row)
            length = max(0.0, (last if end is None else end) - begin)
            args = {"state": job["state"], "retries": job["retries"], "gpus": ",".join(job["gpus"])}
            events.append(_span(f"{job['run_id']} {what}", begin - zero, length, pid=pid, tid=tid, args=args))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _span(name: str, begin_s: float, length_s: float, *, pid: int, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": begin_s * 1e6, "dur": length_s * 1e6, "pid": pid, "tid": tid, "args": args}
