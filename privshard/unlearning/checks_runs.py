"""Checks of what runs leave behind: nothing that a worker or a controller sent late outlives an erasure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from privshard.core.errors import PrivshardError
from privshard.store.views import RecordedRequest, Reservation
from privshard.unlearning.evidence import Evidence, Finding

_CLOCKS = timedelta(minutes=2)  # how far the clocks of two machines may be apart


def run_records(evidence: Evidence) -> Finding:
    """No record tells of an attempt that an erasure came after: how long a shard took tells its size, so every erasure
    deletes all records, and one that is there was saved late, by a controller that was thought dead.

    By the ledger's order alone; only a removal that took up an attempt from before it is told from one that is late by
    the record's own date.
    """
    objects, problems = evidence.workspace.objects, []
    reserved = {run.run_id: run for run in evidence.workspace.ledger.reservations()}
    asked = [item for item in evidence.workspace.ledger.requests() if item.receipt is not None]
    paths = [path for path in objects.list("reports") if path.startswith("reports/run-")]
    for path in paths:
        try:
            record = objects.read_json(path)
            named = [reserved[job["run_id"]] for job in record["jobs"] if job["run_id"] in reserved]
            late = next((item for item in asked if _is_before(record, named, item)), None)
        except (PrivshardError, KeyError, TypeError, ValueError, OSError):
            problems.append(f"{path} can't be understood.")
            continue
        if late is not None:
            problems.append(f"{path} tells of a run from before removal {late.request.id}, which deleted all of those.")
    return Finding(problems, f"{len(paths)} record(s), none from before a removal.")


def late_results(evidence: Evidence) -> Finding:
    """No attempt that was begun with a subject's rows was committed after the subject's removal."""
    ledger, problems = evidence.workspace.ledger, []
    committed = [run for run in ledger.reservations() if run.state == "committed" and run.closed is not None]
    for item in ledger.requests():
        shards = {
            action["shard"] for action in (item.receipt or {}).get("actions", ()) if action.get("shard") is not None
        }
        problems += [
            f"{run.run_id} was begun before removal {item.request.id} and committed after it, as {run.component}."
            for run in committed
            if run.shard in shards and run.created < item.created and str(run.closed) > str(item.completed)
        ]
    return Finding(problems, f"{len(committed)} result(s), none from before a removal that it came after.")


def _is_before(record: Mapping[str, Any], named: list[Reservation], item: RecordedRequest) -> bool:
    """Whether a record tells of an attempt that was reserved before a person asked, and was not begun for that."""
    if not any(run.created < item.created for run in named):
        return False
    begun = datetime.fromtimestamp(record["started_s"], UTC)
    return record["kind"] != "forget" or begun < datetime.fromisoformat(item.created) - _CLOCKS
