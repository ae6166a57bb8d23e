"""Runs under observation: where a run's record is kept in the workspace, and which numbers its metrics may show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from privshard.api import facts
from privshard.api.setup import Setup
from privshard.core.jobs import OnProgress
from privshard.store.layout import run_path
from privshard.store.workspace import Workspace

if TYPE_CHECKING:
    from privshard.runtime.record import RunRecord
    from privshard.runtime.watch import Watch

REMOVAL_DAYS = 30  # a month to answer an erasure request (GDPR, article 12(3))


@contextmanager
def watched(
    workspace: Workspace,
    setup: Setup,
    *,
    kind: str,
    on_progress: OnProgress,
    record: RunRecord | None = None,
    cancelled: Callable[[], bool] | None = None,
    controller: Mapping[str, str] | None = None,
) -> Iterator[Watch]:
    """Watch what is done in the block, and keep its record under `reports/`, which erasures delete.

    controller: how a client reaches the detached controller that this runs in.
    """
    from privshard.runtime.record import RunRecord
    from privshard.runtime.watch import Watch

    name = f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-{token_hex(2)}"

    def save(snapshot: dict[str, Any]) -> None:
        workspace.objects.write_json(run_path(name), {**snapshot, "run": name, "controller": dict(controller or {})})

    watch = Watch(
        record or RunRecord(kind=kind),
        on_progress=on_progress,
        save=save,
        gauges=lambda: _gauges(workspace, setup),
        workspace_id=workspace.id,
        nominal_units=setup.plan.expected_units,
        cancelled=cancelled or (lambda: False),
    )
    watch.save()
    try:
        yield watch
    except BaseException as error:
        watch.end(error)
        raise
    watch.end(None)


def latest_run(workspace: Workspace) -> dict[str, Any] | None:
    """The record of the latest run, None where there is none (any more)."""
    found = sorted(path for path in workspace.objects.list("reports") if path.startswith("reports/run-"))
    return workspace.objects.read_json(found[-1]) if found else None


def open_removals(workspace: Workspace) -> list[dict[str, Any]]:
    """The removal requests that are not completed, with their deadlines; nobody is named."""
    now = datetime.now(UTC)
    waiting = []
    for item in workspace.ledger.requests():
        if item.receipt is None:
            deadline = datetime.fromisoformat(item.created) + timedelta(days=REMOVAL_DAYS)
            waiting.append(
                {
                    "request": item.request.id,
                    "asked": item.created,
                    "deadline": deadline.isoformat(timespec="seconds"),
                    "seconds_left": (deadline - now).total_seconds(),
                }
            )
    return waiting


def _gauges(workspace: Workspace, setup: Setup) -> dict[str, float]:
    """The public numbers of a workspace; see `runtime.metrics`."""
    spent = [spend.epsilon for spend in facts.shard_spends(workspace, setup).values()]
    waiting = open_removals(workspace)
    numbers: dict[str, float] = {"removals_open": len(waiting)}
    if waiting:
        numbers["removal_seconds_left"] = min(item["seconds_left"] for item in waiting)
    known = [epsilon for epsilon in spent if epsilon is not None]
    if known and len(known) == len(spent):
        numbers["epsilon_spent"] = max(known)
    if setup.limit is not None:
        numbers["epsilon_limit"] = setup.limit
    return numbers
