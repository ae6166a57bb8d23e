"""The timeline page: when and where every job of one run was queued, trained and collected."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from privshard.report.html import render
from privshard.report.svg import ABOVE, BELOW, MUTED, RULE, SETTINGS, inline_svg, new_figure

MAX_ROWS = 200
_COLOURS = {"queued": RULE, "starting": MUTED, "running": ABOVE, "finished": BELOW, "collecting": BELOW}


def timeline_page(record: Mapping[str, Any]) -> str:
    """A self-contained HTML page of one run: no scripts, no requests, readable in light and dark.

    record: the JSON value of `privshard.runtime.record.RunRecord.snapshot`. Test: tests/report/test_timeline_page.py.
    """
    from markupsafe import Markup

    jobs = sorted(record["jobs"], key=lambda job: (str(job["node"]), job["pid"] or 0, _begin(job)))
    end = record["ended_s"] or record["updated_s"]
    busy: dict[str, float] = {}
    for job in jobs:
        worker = _worker(job)
        busy[worker] = busy.get(worker, 0.0) + _length(job, "running", end)
    elapsed = max(1e-9, end - record["started_s"])
    shown = jobs[:MAX_ROWS]
    return render(
        "timeline.html",
        title=f"Timeline of a {record['kind']} run",
        facts=(
            ("Began, UTC", f"{datetime.fromtimestamp(record['started_s'], UTC):%Y-%m-%d %H:%M:%S}"),
            ("Took", f"{elapsed:.1f} s"),
            ("Jobs", len(jobs)),
            ("Retries", sum(job["retries"] for job in jobs)),
        ),
        state=record["state"],
        error=record["error"],
        plot=Markup(timeline_plot(shown, zero=record["started_s"], end=end)) if shown else "",
        hidden=len(jobs) - len(shown),
        workers=[(name, f"{seconds:.1f}", f"{seconds / elapsed:.2f}") for name, seconds in sorted(busy.items())],
        jobs=[
            (
                *(job["run_id"], job["state"], _worker(job), ", ".join(job["gpus"]) or "none", _share(job)),
                *(f"{_length(job, what, end):.2f}" for what in ("queued", "starting", "running")),
                job["retries"],
            )
            for job in shown
        ],
    )


def timeline_plot(jobs: list[Mapping[str, Any]], *, zero: float, end: float) -> str:
    """One row a job, one bar for each thing that it did."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(8.6, 0.8 + 0.22 * len(jobs))
        axes = figure.add_subplot()
        for row, job in enumerate(jobs):
            for what, begin, until in job["spans"]:
                length = (end if until is None else until) - begin
                axes.barh(row, length, left=begin - zero, height=0.7, color=_COLOURS.get(what, MUTED))
        axes.set_yticks(range(len(jobs)), [job["run_id"] for job in jobs], parse_math=False)
        axes.set_ylim(len(jobs) - 0.4, -0.6)
        axes.set_xlim(0, max(1e-3, end - zero))
        axes.tick_params(length=0)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_xlabel("seconds")
        return inline_svg(figure, name="timeline", description="When every job of the run was queued and trained")


def _worker(job: Mapping[str, Any]) -> str:
    return f"{job['node']}/{job['pid']}" if job["node"] else "none"


def _share(job: Mapping[str, Any]) -> str:
    return f"{job['gpu_share']:g}" if job["gpu_share"] else "whole" if job["gpus"] else "none"


def _begin(job: Mapping[str, Any]) -> float:
    return next((begin for what, begin, _ in job["spans"] if what == "running"), float("inf"))


def _length(job: Mapping[str, Any], what: str, end: float) -> float:
    return sum((end if until is None else until) - begin for name, begin, until in job["spans"] if name == what)
