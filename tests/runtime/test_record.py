"""A run's record, and what is made of it: a trace."""

from __future__ import annotations

import json

import pytest

from privshard.core.errors import ResourceError
from privshard.core.jobs import Progress
from privshard.runtime.events import RunEvent, WorkerPlace
from privshard.runtime.record import RunRecord
from privshard.runtime.trace import chrome_trace

PLACE = WorkerPlace("machine", 7, ("0",), 0.5)


@pytest.fixture
def record() -> RunRecord:
    """Two jobs: one is retried once and done, one is still queued."""
    made = RunRecord(kind="train")
    made.started_s = 0.0
    life = [("queued", 1), ("starting", 2), ("running", 3), ("retried", 5), ("starting", 6), ("running", 7)]
    life += [("finished", 9), ("collecting", 9.5), ("done", 10)]
    for what, at_s in life:
        error = "ResourceError" if what == "retried" else None
        made.on_event(RunEvent(what, "a", PLACE if at_s >= 3 else None, error, at_s=at_s))
    made.on_event(RunEvent("queued", "b", at_s=1))
    return made


def test_it_knows_where_every_job_is_and_was(record):
    done, queued = record.snapshot()["jobs"]
    assert (done["state"], done["retries"], done["error"], done["node"], done["gpu_share"]) == (
        "done",
        1,
        "ResourceError",
        "machine",
        0.5,
    )
    assert [(what, end - begin) for what, begin, end in done["spans"]] == [
        ("queued", 1),
        ("starting", 1),
        ("running", 2),
        ("queued", 1),
        ("starting", 1),
        ("running", 2),
        ("finished", 0.5),
        ("collecting", 0.5),
    ]
    assert (queued["state"], queued["spans"]) == ("queued", [["queued", 1, None]])
    assert record.counts == {"done": 1, "queued": 1}


def test_steps_are_counted_once_however_often_they_are_told(record):
    for done in (1, 1, 4):
        record.on_progress(Progress("a", 0, "train", done, 4))
    record.on_progress(Progress("a", 0, "encode", 99, 100))
    record.on_progress(Progress("b", 1, "train", 2, 4))
    assert record.steps_done == 6


def test_stages_without_a_job_are_the_runs_own(record):
    record.on_progress(Progress("ingest", None, "ingest", 5, 0))
    shown = record.snapshot()
    assert shown["stage"] == {"name": "ingest", "done": 5, "total": 0}
    assert [name for name, _, _ in shown["stages"]] == ["ingest"]


def test_it_ends_once_with_the_error_in_words(record):
    record.end("failed", ResourceError("No worker came.", remedy="Wait."))
    shown = json.loads(json.dumps(record.snapshot()))
    assert shown["state"] == "failed"
    assert shown["error"] == {"kind": "resource_missing", "message": "No worker came.", "remedy": "Wait."}
    assert shown["ended_s"] >= shown["started_s"]


def test_the_trace_puts_work_on_its_worker_and_waiting_on_the_controller(record):
    record.end("done")
    shown = {**record.snapshot(), "ended_s": 12.0}
    trace = chrome_trace(shown)
    names = {event["pid"]: event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert names == {0: "controller", 1: "machine"}
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["pid"] for event in spans if event["name"] == "a running"} == {1}
    assert {event["pid"] for event in spans if event["name"] == "a queued"} == {0}
    (waiting,) = [event for event in spans if event["name"] == "b queued"]
    assert (waiting["ts"], waiting["dur"]) == (1e6, 11e6)  # an open span ends with the run
    assert sum(event["dur"] for event in spans if event["name"] == "a running") == 4e6
    json.dumps(trace)
