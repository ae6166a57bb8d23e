"""Watching a run: what is logged and exported about it, and that watching never breaks it."""

from __future__ import annotations

import io
import json

import pytest

from privshard.core.errors import ResourceError
from privshard.core.jobs import Progress
from privshard.runtime.events import RunEvent, WorkerPlace
from privshard.runtime.metrics import RunMetrics
from privshard.runtime.record import RunRecord
from privshard.runtime.watch import CancelledError, EventLog, Watch


def watch(**options) -> Watch:
    return Watch(RunRecord(kind="train"), **{"on_progress": lambda _: None, **options})


def test_the_log_is_json_lines_that_name_errors_by_class_alone(tmp_path, monkeypatch):
    place = tmp_path / "log.jsonl"
    monkeypatch.setenv("PRIVSHARD_LOG", str(place))
    seen = watch()
    seen.on_event(RunEvent("running", "shard-000-attempt-000", WorkerPlace("machine", 7)))
    seen.on_event(RunEvent("failed", "shard-000-attempt-000", WorkerPlace("machine", 7), "ResourceError"))
    first, last = [json.loads(line) for line in place.read_text().splitlines()]
    assert first.keys() == {"time", "event", "run", "node", "pid"}
    assert (last["event"], last["error"], last["pid"]) == ("failed", "ResourceError", 7)


def test_a_log_that_cannot_be_written_stops_nothing():
    stream = io.StringIO()
    stream.close()
    EventLog(stream).write(RunEvent("queued", "a"))


def test_storage_that_fails_stops_nothing_here():
    def fail(_):
        raise ResourceError("The disk is full.")

    seen = watch(save=fail)
    seen.save()
    seen.end(None)


def test_progress_reaches_the_record_and_the_person():
    heard = []
    seen = watch(on_progress=heard.append)
    seen.on_event(RunEvent("running", "a"))
    seen.on_progress(Progress("a", 0, "train", 1, 2))
    assert [progress.done for progress in heard] == [1]
    assert seen.record.snapshot()["jobs"][0]["done"] == 1


def test_a_tick_ends_a_run_that_was_cancelled():
    asked, saved = [], []
    seen = watch(cancelled=lambda: bool(asked), save=saved.append)
    seen.on_tick()
    asked.append(1)
    with pytest.raises(CancelledError) as ended:
        seen.on_tick()
    seen.end(ended.value)
    assert saved[-1]["state"] == "cancelled"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "done"),
        (ValueError("x"), "failed"),
        (BaseException("a panic below Python"), "failed"),
        (KeyboardInterrupt(), "cancelled"),
    ],
)
def test_how_a_run_ended_is_saved(error, state):
    saved = []
    seen = watch(save=saved.append)
    seen.end(error)
    assert saved[-1]["state"] == state
    assert seen.record.snapshot()["state"] == "running"  # for its owner to end, after the rest is done


def test_without_a_cluster_no_metric_is_made():
    metrics = RunMetrics(workspace_id="w", nominal_units=4.0)
    metrics.update(RunRecord(kind="train"), {"epsilon_spent": 8.0})
    assert metrics._made == {}
