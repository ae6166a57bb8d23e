"""Runs that outlive their client: start one on a cluster, see how it is doing, cancel it, draw its timeline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from privshard.api import facts, watching
from privshard.api.recipe import Recipe
from privshard.api.setup import Setup
from privshard.core.errors import InputError, PrivshardError, ResourceError, VerificationError
from privshard.core.jobs import OnProgress, Progress
from privshard.store.objects import ObjectStore
from privshard.store.workspace import Workspace

if TYPE_CHECKING:
    from privshard.runtime.record import RunRecord

_PASSED_ON = ("PRIVSHARD_KEYS_DIR", "PRIVSHARD_LOG", "PYTHONPATH")  # paths; secrets belong into the cluster's own setup
_BEGIN_TIMEOUT_S = 300.0
_POLL_S = 0.5
_SILENT_S = 60.0


def train_detached(recipe: Recipe, *, workspace: str, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Start `train` in a controller on the recipe's cluster and return once it works, or raise what refuses it.

    A controller that is there already is left alone and reported: its client has come back. The keys of the workspace
    and a database's password have to be where the controller runs.
    """
    from privshard.runtime.detached import ControllerClient

    address = recipe.ray.address
    if address in ("local", "none"):
        raise InputError(
            f"ray.address: expected a cluster for a detached training, got {address}, which ends with this command.",
            remedy="Name the cluster with --address auto, HOST:PORT or ray://HOST:PORT.",
        )
    if recipe.ledger and urlsplit(recipe.ledger).password:
        raise InputError(
            "ledger: expected a database URL without its password for a detached training.",
            remedy="Set PRIVSHARD_LEDGER, with the password, in the environment of the cluster's machines.",
        )
    root = ObjectStore(workspace).root
    environment = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    with ControllerClient(root, address=address, timeout_s=recipe.ray.schedule_timeout_s) as client:
        started = client.start(
            run_training,
            (recipe.model_dump(mode="json"), root, address, client.name),
            kind="train",
            environment=environment,
            local="://" not in root,
        )
        deadline = time.monotonic() + _BEGIN_TIMEOUT_S
        while True:
            record = client.ask("status", timeout_s=max(recipe.ray.schedule_timeout_s, 60.0))
            _tell(record, on_progress)
            if record["state"] != "running" or record["jobs"]:
                break
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"The controller {client.name} reached no shard within {_BEGIN_TIMEOUT_S:g} s; it goes on.",
                    remedy=f"Look after it with: privshard status {workspace}",
                )
            time.sleep(_POLL_S)
    _raise_failure(record)
    return {
        "workspace": root,
        "controller": client.name,
        "address": address,
        "started": started,
        "state": record["state"],
    }


def run_training(
    values: dict[str, Any],
    workspace: str,
    address: str,
    name: str,
    *,
    record: RunRecord,
    cancelled: Callable[[], bool],
) -> None:
    """What a detached controller does: `train`, resuming whatever is there, on the cluster that it lives on."""
    from privshard.api.training import train

    recipe = Recipe(**values)
    recipe = recipe.model_copy(update={"ray": recipe.ray.model_copy(update={"address": "auto"})})
    train(
        recipe,
        workspace=workspace,
        record=record,
        cancelled=cancelled,
        controller={"name": name, "address": address},
    )


def status(
    workspace: str, *, address: str | None = None, follow: bool = False, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """What has become of a workspace's training and removals: from its controller where it has one, else as saved.

    address: the controller's cluster, where it is not the one that the training was started with. follow: come back
    when the run is over. Progress by job is under `confidential`: it tells about the size of shards.
    """
    root = ObjectStore(workspace).root
    with _opened(root) as ws:
        record, where = _record(ws, root, address=address, follow=follow, on_progress=on_progress)
        setup = Setup.load(ws) if ws is not None and ws.ledger.get("setup") is not None else None
        runs = ws.ledger.reservations() if ws is not None else []
        latest = {run.shard: run for run in runs}
        states = [run.state for run in latest.values()]
        num_shards = setup.num_shards if setup else None
        model = ws.ledger.current_model() if ws is not None else None
        return {
            "workspace": root,
            "controller": where,
            "run": {
                "kind": record["kind"],
                "state": _state(record, where),
                "started_s": record["started_s"],
                "updated_s": record["updated_s"],
                "ended_s": record["ended_s"],
                "error": record["error"],
                "retries": sum(job["retries"] for job in record["jobs"]),
            }
            if record
            else None,
            "stage": record["stage"]["name"] if record and record["stage"] else None,
            "shards": {
                "total": num_shards,
                "committed": states.count("committed"),
                "reserved": states.count("reserved"),
                "not_started": None if num_shards is None else num_shards - len(latest) + states.count("voided"),
                "attempts_spent": sum(run.state != "voided" for run in runs),
            },
            "model": facts.version_name(model.version) if model else None,
            "removals": watching.open_removals(ws) if ws is not None else [],
            "confidential": {"jobs": [_job(job) for job in record["jobs"]] if record else []},
        }


def cancel(workspace: str, *, address: str | None = None, timeout_s: float = 30.0) -> dict[str, Any]:
    """End the detached training of a workspace. What is committed stays; nothing that was not released is charged.

    Asked first to stop at its next step, the controller is ended after `timeout_s` otherwise.
    """
    from privshard.runtime.detached import ControllerClient

    root = ObjectStore(workspace).root
    with _opened(root) as ws:
        where = address or _recorded_address(ws)
    if where is None:
        return {"workspace": root, "status": "not_running"}
    with ControllerClient(root, address=where) as client:
        if client.find() is None:
            return {"workspace": root, "status": "not_running"}
        try:
            client.ask("cancel")
            record = client.ask("wait", timeout_s, timeout_s=timeout_s + 10)
        except ResourceError:
            record = None
        client.kill()
    ended = record is not None and record["state"] != "running"
    return {"workspace": root, "status": record["state"] if ended and record else "killed"}


def timeline(workspace: str, *, html: str | None = None, trace: str | None = None) -> dict[str, Any]:
    """The latest run of a workspace by machine and worker. Confidential, like everything that times tell.

    html: a file to write a page to. trace: a file for chrome://tracing or Perfetto.
    """
    import json

    from privshard.runtime.trace import chrome_trace
    from privshard.store.disk import write_whole

    with Workspace.open(workspace) as ws:
        record = watching.latest_run(ws)
    if record is None:
        raise InputError(
            f"Workspace {workspace}: expected the record of a run, found none.",
            remedy="Removals erase the records of earlier runs; the next training or retraining writes one.",
        )
    if html is not None:
        from privshard.report.html import write_page
        from privshard.report.timeline_page import timeline_page

        write_page(Path(html), timeline_page(record))
    if trace is not None:
        write_whole(Path(trace), json.dumps(chrome_trace(record)).encode())
    ended = record["ended_s"] or record["updated_s"]
    return {
        "run": record["run"],
        "kind": record["kind"],
        "state": record["state"],
        "html": html,
        "trace": trace,
        "confidential": {
            "elapsed_s": ended - record["started_s"],
            "jobs": [_job(job) | {"spans": job["spans"]} for job in record["jobs"]],
        },
    }


class _opened:  # noqa: N801
    """The workspace, None where there is none yet: a detached training may not have made it."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._ws: Workspace | None = None

    def __enter__(self) -> Workspace | None:
        try:
            self._ws = Workspace.open(self._root)
        except InputError:
            self._ws = None
        return self._ws

    def __exit__(self, *_: object) -> None:
        if self._ws is not None:
            self._ws.close()


def _record(
    ws: Workspace | None, root: str, *, address: str | None, follow: bool, on_progress: OnProgress | None
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The live record from the controller, or the saved one; and where the controller is."""
    saved = _saved(ws)
    recorded = _recorded_address(ws)
    running = saved is not None and saved["state"] == "running" and recorded is not None
    if address is None and not running:
        if ws is None:
            raise InputError(
                f"Expected a workspace at {root}, found none.",
                remedy="Name the cluster with --address where a detached training has only begun.",
            )
        return saved, {"name": None, "address": recorded, "state": "none"}
    from privshard.runtime.detached import ControllerClient, controller_name

    place = {"name": controller_name(root), "address": address or recorded}
    try:
        with ControllerClient(root, address=str(place["address"])) as client:
            if client.find() is None:
                return saved, {**place, "state": "gone"}
            while True:
                record = client.ask("status")
                _tell(record, on_progress)
                if not follow or record["state"] != "running":
                    return record, {**place, "state": "here"}
                time.sleep(_POLL_S)
    except ResourceError:
        if saved is None:
            raise
        return _saved(ws), {**place, "state": "unreachable"}


def _state(record: dict[str, Any], where: dict[str, Any]) -> str:
    """The state of a run. A saved one that says "running" was interrupted where its controller is gone, and is "silent"
    where it has none and has not been saved for a minute: another process may be at it, or may have died."""
    if record["state"] != "running" or where["state"] in ("here", "unreachable"):
        return record["state"]
    if where["state"] == "gone":
        return "interrupted"
    return "silent" if time.time() - record["updated_s"] > _SILENT_S else "running"


def _saved(ws: Workspace | None) -> dict[str, Any] | None:
    if ws is None:
        return None
    try:
        return watching.latest_run(ws)
    except VerificationError:  # it is being replaced or erased
        return None


def _recorded_address(ws: Workspace | None) -> str | None:
    saved = _saved(ws)
    return saved["controller"].get("address") if saved else None


def _job(job: dict[str, Any]) -> dict[str, Any]:
    names = ("run_id", "state", "stage", "done", "total", "node", "pid", "gpus", "retries", "error")
    return {name: job[name] for name in names}


def _tell(record: dict[str, Any], on_progress: OnProgress | None) -> None:
    """Pass the record on as progress."""
    if on_progress is None:
        return
    done = sum(job["state"] == "done" for job in record["jobs"])
    if record["jobs"]:
        on_progress(Progress("shards", None, "shards", done, len(record["jobs"])))
    elif record["stage"]:
        on_progress(Progress("stage", None, *(record["stage"][key] for key in ("name", "done", "total"))))


def _raise_failure(record: dict[str, Any]) -> None:
    """Raise what ended a run."""
    if record["state"] != "failed":
        return
    told = record["error"]
    classes = {each.kind: each for each in PrivshardError.__subclasses__() if each.__module__.endswith("core.errors")}
    raise classes.get(told["kind"], PrivshardError)(told["message"], remedy=told["remedy"])
