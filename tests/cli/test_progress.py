"""Progress: bars where there is a terminal, few lines where there is none."""

from __future__ import annotations

import io

import pytest

from privshard.cli.progress import Lines, progress_shown
from privshard.core.jobs import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def news(shard, stage, done, total):
    return Progress("run", shard, stage, done, total)


def test_lines_show_starts_ends_and_little_between():
    now = 100.0
    stream = io.StringIO()
    lines = Lines(stream, interval_s=5.0, clock=lambda: now)
    for step in range(61):
        lines(news(0, "training", step, 60))
        lines(news(1, "training", step, 60))
        now += 0.125
    lines(news(None, "shards", 2, 2))
    shown = stream.getvalue().splitlines()
    of_shard_0 = [line.split("] ")[1] for line in shown if "shard 0" in line]
    assert of_shard_0 == [f"shard 0: training {done}/60" for done in (0, 40, 60)]
    assert len(shown) == 7
    assert shown[0].startswith("[     0.0 s]")
    assert shown[-1] == "[     7.6 s] shards 2/2"


def test_an_unknown_total_gives_few_lines_too():
    stream = io.StringIO()
    lines = Lines(stream, clock=lambda: 0.0)
    for done in range(1, 500):
        lines(news(None, "ingest", done, 0))
    lines(news(None, "ingest", 499, 499))
    assert stream.getvalue() == "[     0.0 s] ingest 1\n[     0.0 s] ingest 499/499\n"


def test_a_new_stage_is_a_new_line():
    stream = io.StringIO()
    lines = Lines(stream, clock=lambda: 0.0)
    for stage in ("caching", "training"):
        lines(news(3, stage, 0, 9))
        lines(news(3, stage, 1, 9))
    assert stream.getvalue().count("\n") == 2


def test_no_terminal_means_lines():
    stream = io.StringIO()
    with progress_shown("train", stream=stream) as on_progress:
        assert isinstance(on_progress, Lines)
        on_progress(news(0, "training", 0, 2))
    assert "\x1b" not in stream.getvalue()


def test_bars_show_the_whole_and_every_running_shard(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress_shown("train", stream=stream) as on_progress:
        on_progress(news(0, "training", 5, 10))
        on_progress(news(1, "training", 10, 10))
        on_progress(news(2, "caching", 9, 10))
        on_progress(news(2, "training", 1, 20))
    shown = stream.getvalue()
    for part in ("train ", "shard 0: training", "5/10", "shard 2: training", "1/20"):
        assert part in shown
    assert "shard 1" not in shown


def test_news_of_the_whole_moves_the_first_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress_shown("train", stream=stream) as on_progress:
        on_progress(news(None, "shards", 1, 4))
    assert "shards" in stream.getvalue()
    assert "1/4" in stream.getvalue()


def test_a_terminal_without_news_stays_empty():
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), progress_shown("budget", stream=stream):
        raise KeyboardInterrupt
    assert stream.getvalue() == ""
