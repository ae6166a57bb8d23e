"""What a run leaves behind: a log without personal data, and a record that erasures delete."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest

from privshard import api
from privshard.api import watching
from privshard.core.removal import RemovalRequest
from privshard.store.workspace import Workspace


@pytest.fixture
def watched_workspace(make_recipe, workspace, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("PRIVSHARD_LOG", str(tmp_path / "log.jsonl"))
    api.train(make_recipe(insecure_seed=3), workspace=workspace)
    return workspace


def test_logs_and_records_name_no_subject_and_no_file(watched_workspace, tmp_path):
    log = (tmp_path / "log.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["event"] for line in lines if line["run"].startswith("shard-001")] == [
        "queued",
        "running",
        "finished",
        "done",
    ]
    with Workspace.open(watched_workspace) as ws:
        record = json.dumps(watching.latest_run(ws))
        hashes = [ws.subject_hash(f"person-{number:02d}") for number in range(8)]
    for text in (log, record):
        for personal in ("person-", "people.parquet", ".png", str(tmp_path), *hashes):
            assert personal not in text, personal


def test_a_removal_deletes_the_records_of_earlier_runs(watched_workspace):
    with Workspace.open(watched_workspace) as ws:
        before = watching.latest_run(ws)
    assert before is not None
    api.forget(watched_workspace, subject="person-00", mode="drop")
    with Workspace.open(watched_workspace) as ws:
        assert watching.latest_run(ws) is None
    assert api.verify(watched_workspace)["ok"]


def test_an_open_removal_shows_its_deadline_and_nobody(watched_workspace):
    with Workspace.open(watched_workspace) as ws:
        ws.ledger.add_request(RemovalRequest("r-1", "a-hash", "drop"))
    (waiting,) = api.status(watched_workspace)["removals"]
    asked, deadline = (datetime.fromisoformat(waiting[name]) for name in ("asked", "deadline"))
    assert abs(deadline - asked - timedelta(days=30)) < timedelta(seconds=2)
    assert waiting.keys() == {"request", "asked", "deadline", "seconds_left"}
    assert 29 * 86400 < waiting["seconds_left"] < 30 * 86400
