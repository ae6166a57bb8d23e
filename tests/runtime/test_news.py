"""Progress is thinned, survives a broken callback, and the box keeps only the latest."""

from __future__ import annotations

from privshard.core.jobs import Progress
from privshard.runtime.news import NewsBox, safely


def step(done: int, *, total: int = 97, stage: str = "steps", shard: int = 0) -> Progress:
    return Progress(f"run-{shard}", shard, stage, done, total)


def test_safely_thins_each_stage_on_its_own_and_always_tells_the_end() -> None:
    now = [0.0]
    told: list[Progress] = []
    tell = safely(told.append, interval_s=0.2, clock=lambda: now[0])
    for done in range(98):
        tell(step(done))
        tell(step(done, stage="cache"))
        now[0] += 0.01
    steps = [news.done for news in told if news.stage == "steps"]
    assert steps[0] == 0
    assert steps[-1] == 97
    assert 5 <= len(steps) <= 7  # one second of work, five a second, and the end
    assert len(told) == 2 * len(steps)


def test_a_broken_callback_is_heard_once_and_breaks_nothing(caplog) -> None:
    calls = []

    def broken(progress: Progress) -> None:
        calls.append(progress)
        raise BrokenPipeError

    tell = safely(broken)
    for done in range(5):
        tell(step(done))
    assert len(calls) == 1
    assert "goes on without progress" in caplog.text


def test_the_box_keeps_the_latest_of_every_stage_and_empties() -> None:
    box = NewsBox()
    for done in range(3):
        box.put(step(done))
        box.put(step(done, stage="cache"))
    assert {(news.stage, news.done) for news in box.take()} == {("steps", 2), ("cache", 2)}
    assert box.take() == ()
