"""Readable summaries of runs: status, cancel, timeline, and a detached start."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN_JOBS = 40


def status(result: dict[str, Any]) -> RenderableType:
    """Where a training is."""
    run, shards, where = result["run"], result["shards"], result["controller"]
    lines = [f"Workspace {result['workspace']}, model {result['model'] or 'none yet'}"]
    if run:
        since = datetime.fromtimestamp(run["started_s"], UTC).isoformat(timespec="seconds")
        lines.append(f"Run: {run['kind']}, {run['state']}, since {since}, {run['retries']} retries")
        if run["error"]:
            lines.append(f"  {run['error']['message']} {run['error']['remedy']}".rstrip())
    if where["name"]:
        lines.append(f"Controller: {where['name']} at {where['address']}, {where['state']}")
    if result["stage"]:
        lines.append(f"Stage: {result['stage']}")
    total = "?" if shards["total"] is None else shards["total"]
    lines.append(
        f"Shards: {shards['committed']} of {total} committed, {shards['reserved']} reserved; "
        f"{shards['attempts_spent']} attempt(s) spent"
    )
    for item in result["removals"]:
        days = item["seconds_left"] / 86400
        lines.append(f"Removal {item['request']}: open since {item['asked'][:10]}, {days:.1f} days to its deadline")
    return _group(lines, _jobs(result["confidential"]["jobs"]))


def cancel(result: dict[str, Any]) -> RenderableType:
    """What became of the controller."""
    said = {
        "not_running": "No detached training runs here; nothing was done",
        "cancelled": "Cancelled; `privshard train` resumes",
        "killed": "The controller did not stop in time and was ended; `privshard train` resumes",
    }
    return said.get(result["status"], f"It was over before: {result['status']}")


def detached(result: dict[str, Any]) -> RenderableType:
    """Where a detached training is now."""
    verb = "Started" if result["started"] else "Found at work"
    return _group(
        [
            f"{verb}: controller {result['controller']} at {result['address']}",
            f"See it: privshard status {result['workspace']}",
        ]
    )


def timeline(result: dict[str, Any]) -> RenderableType:
    """The jobs of a run, and where its pages are."""
    lines = [
        f"Run {result['run']} ({result['kind']}, {result['state']}), {result['confidential']['elapsed_s']:.1f} s",
        *(f"Written: {result[key]}" for key in ("html", "trace") if result[key]),
    ]
    return _group(lines, _jobs(result["confidential"]["jobs"]))


def _jobs(jobs: list[Mapping[str, Any]]) -> RenderableType | None:
    """The jobs that are not done first, the rest as a number."""
    from rich.table import Table

    if not jobs:
        return None
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "state", "stage", "done", "worker", "retries", "error"):
        table.add_column(heading)
    shown = sorted(jobs, key=lambda job: job["state"] == "done")[:_SHOWN_JOBS]
    for job in shown:
        done = f"{job['done']}/{job['total']}" if job["total"] else ""
        worker = f"{job['node']}/{job['pid']}" if job["node"] else ""
        cells = (job["run_id"], job["state"], job["stage"] or "", done, worker, str(job["retries"]), job["error"] or "")
        table.add_row(*cells)
    if len(jobs) > len(shown):
        table.add_row(f"and {len(jobs) - len(shown)} more", *[""] * 6)
    return table


def _group(lines: list[str], table: RenderableType | None = None) -> RenderableType:
    from rich.console import Group

    return Group(*lines, *([table] if table is not None else []))
