"""The detached controller without a cluster: it works in a thread, answers meanwhile, and leaves at the end."""

from __future__ import annotations

import threading

import pytest

from privshard.core.errors import BudgetError
from privshard.core.jobs import Progress
from privshard.runtime import detached
from privshard.runtime.detached import DetachedController, controller_name
from privshard.runtime.watch import CancelledError


@pytest.fixture
def control(monkeypatch):
    """A function that starts a controller; afterwards it must have left."""
    monkeypatch.setattr(detached, "_LINGER_S", 0.01)
    left = []

    def start(work, *args) -> DetachedController:
        event = threading.Event()
        left.append(event)
        return DetachedController(work, args, "train", event.set)

    yield start
    assert all(event.wait(10) for event in left)


def test_it_answers_while_it_works(control):
    go, there = threading.Event(), threading.Event()

    def work(name, *, record, cancelled):
        record.on_progress(Progress(name, None, "ingest", 3, 0))
        there.set()
        assert go.wait(10)

    controller = control(work, "x")
    assert there.wait(10)
    assert controller.status()["stage"] == {"name": "ingest", "done": 3, "total": 0}
    assert controller.wait(0.01)["state"] == "running"
    go.set()
    assert controller.wait(10)["state"] == "done"


def test_a_panic_below_python_is_an_end_too(control):
    """Panics of libraries in Rust are no `Exception`; a controller that missed one would be found running forever."""

    class Panic(BaseException):
        pass

    def work(*, record, cancelled):
        raise Panic("index out of bounds")

    found = control(work).wait(10)
    assert (found["state"], found["error"]["message"]) == ("failed", "index out of bounds")


def test_it_is_cancelled_at_the_next_tick(control):
    def work(*, record, cancelled):
        while not cancelled():
            pass
        raise CancelledError("Stopped.")

    controller = control(work)
    controller.cancel()
    assert controller.wait(10)["state"] == "cancelled"


def test_what_the_work_raises_is_told_in_words(control):
    def work(*, record, cancelled):
        raise BudgetError("Too much.", remedy="Less.")

    ended = control(work).wait(10)
    assert ended["state"] == "failed"
    assert ended["error"] == {"kind": "budget_refused", "message": "Too much.", "remedy": "Less."}


def test_a_name_shows_no_path():
    assert controller_name("/data/ada-lovelace") != controller_name("/data/other")
    assert "ada" not in controller_name("/data/ada-lovelace")
