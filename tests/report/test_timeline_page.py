"""The timeline page: every job, escaped, and marked as confidential."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from privshard.report.timeline_page import MAX_ROWS, timeline_page, timeline_plot


def job(number: int, **changes) -> dict:
    return {
        "run_id": f"shard-{number:03d}-attempt-000",
        "state": "done",
        "node": "machine<b>",
        "pid": 7,
        "gpus": ["0"],
        "gpu_share": 0.25,
        "retries": 2,
        "spans": [["queued", 10.0, 11.0], ["running", 11.0, 14.5]],
        **changes,
    }


def record(jobs: list[dict], **changes) -> dict:
    times = {"started_s": 10.0, "ended_s": 15.0, "updated_s": 15.0}
    return {"kind": "train", "state": "done", "error": None, "jobs": jobs, **times, **changes}


def test_every_job_is_there_with_its_times():
    page = timeline_page(record([job(0), job(1, node=None, pid=None, gpus=[], gpu_share=0.0, spans=[])]))
    assert "shard-000-attempt-000" in page
    assert "shard-001-attempt-000" in page
    assert "3.50" in page
    assert "0.70" in page  # 3.5 of 5 seconds
    assert "Confidential" in page
    assert "machine<b>" not in page


def test_a_failed_run_says_why():
    error = {"kind": "x", "message": "No worker & no room.", "remedy": "Wait."}
    page = timeline_page(record([], state="failed", error=error))
    assert "No worker &amp; no room." in page
    assert "No job was started." in page


def test_a_long_run_is_cut_and_says_so():
    page = timeline_page(record([job(number) for number in range(MAX_ROWS + 3)]))
    assert "3 more jobs are not drawn" in page


def test_an_open_span_is_drawn_to_the_end():
    plot = timeline_plot([job(0, spans=[["running", 11.0, None]])], zero=10.0, end=15.0)
    assert ElementTree.fromstring(plot).tag.endswith("svg")
