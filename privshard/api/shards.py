"""Training shards of a workspace: reserve, run, keep, commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from privshard.api.setup import Setup
from privshard.core.errors import PrivshardError
from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import OnProgress, Progress, ShardFailure, ShardJob, ShardResult
from privshard.core.model import ComponentRecord
from privshard.store.components import component_id, parameters_digest
from privshard.store.workspace import Workspace

if TYPE_CHECKING:
    from privshard.core.jobs import ShardTrainer


def committed(workspace: Workspace) -> dict[int, str]:
    """Shard -> the component of its latest committed attempt."""
    found: dict[int, tuple[int, str]] = {}
    for run in workspace.ledger.reservations():
        if run.state == "committed" and run.component is not None and run.attempt >= found.get(run.shard, (-1, ""))[0]:
            found[run.shard] = (run.attempt, run.component)
    return {shard: component for shard, (_, component) in found.items()}


def adopt(workspace: Workspace) -> None:
    """Settle what an interrupted training left: a component that was written whole before the ledger was told is
    committed (nothing more is spent), and files that belong to no run are deleted."""
    runs = {(run.shard, run.attempt): run for run in workspace.ledger.reservations()}
    for component in workspace.component_ids():
        whole = workspace.objects.exists(workspace.component_record_path(component))
        record = workspace.load_record(component) if whole else None
        run = runs.get((record.shard, record.attempt)) if record else None
        if run is not None and run.state == "reserved":
            workspace.ledger.commit(run.run_id, component=component)
        elif run is None or run.component != component:
            workspace.delete_component(component)


def train_shards(
    workspace: Workspace,
    setup: Setup,
    *,
    shards: Sequence[int],
    flags: ExecutionFlags,
    trainer: ShardTrainer,
    stop: Callable[[], None],
    on_progress: OnProgress,
) -> dict[int, ShardResult]:
    """A committed component for each of `shards`, by a new attempt; the results, by shard.

    Every attempt is reserved in the ledger before any worker starts; the limit refuses (BudgetError) before that. A
    failure raises after the other shards were kept. Attempts of which nothing left a worker are voided, so they cost
    nothing; whatever is unclear stays spent. `stop` ends all workers, so that after an interrupt nothing can leave
    them any more.
    """
    from privshard.privacy.budget import admit, admit_workspace

    seed = workspace.ledger.get("insecure_seed")
    jobs = []
    for shard in shards:
        attempt = workspace.ledger.next_attempt(shard)
        run_id = f"shard-{shard:03d}-attempt-{attempt:03d}"
        jobs.append(_job(workspace, setup, shard=shard, attempt=attempt, run_id=run_id, flags=flags, seed=seed))
    open_runs: dict[str, ShardJob] = {}
    results: dict[int, ShardResult] = {}
    failures: list[ShardFailure] = []
    try:
        for job in jobs:
            workspace.ledger.reserve(
                job.run_id,
                shard=job.shard,
                attempt=job.attempt,
                plan=setup.plan,
                admit=admit(setup.limit),
                admit_workspace=admit_workspace(setup.limit),
            )
            open_runs[job.run_id] = job
        for outcome in trainer.train(jobs, on_progress):
            job = open_runs[outcome.run_id]
            if isinstance(outcome, ShardFailure):
                failures.append(outcome)
                if not outcome.released:
                    workspace.ledger.void(job.run_id, reason="it failed before anything left the worker")
                del open_runs[outcome.run_id]
                continue
            # from here on the result is in this process: an interrupt can't undo that, so it counts as spent
            del open_runs[outcome.run_id]
            results[outcome.shard] = outcome
            keep(workspace, setup, outcome)
            on_progress(Progress("shards", None, "shards", len(results), len(jobs)))
    except BaseException:
        stop()
        for run_id in open_runs:
            workspace.ledger.void(run_id, reason="it was stopped before anything left the worker")
        raise
    if failures:
        raise _first(failures)
    return results


def keep(workspace: Workspace, setup: Setup, result: ShardResult) -> str:
    """Write a component's files, then commit it; its id."""
    arrays = {name: np.array(array, dtype=np.float32) for name, array in result.tensors.items()}
    identity = component_id(
        arrays, base=setup.base_digest, space=result.space, shard=result.shard, attempt=result.attempt
    )
    parameters = {name: np.array(array, dtype=np.float32) for name, array in result.parameters.items()}
    record = ComponentRecord(
        id=identity,
        shard=result.shard,
        attempt=result.attempt,
        method=setup.method.name,
        base=setup.base_digest,
        recipe=setup.recipe_digest,
        spend=setup.spend(1),
        secure_randomness=workspace.ledger.get("insecure_seed") is None,
        space=result.space,
        parameters=parameters_digest(parameters) if parameters else None,
    )
    private = {
        "examples": list(result.example_ids),
        "num_units": result.num_units,
        "timing_s": dict(result.timing_s),
    }
    workspace.save_component(record, arrays, private=private, parameters=parameters)
    workspace.ledger.commit(result.run_id, component=identity)
    return identity


def _job(
    workspace: Workspace,
    setup: Setup,
    *,
    shard: int,
    attempt: int,
    run_id: str,
    flags: ExecutionFlags,
    seed: int | None,
) -> ShardJob:
    return ShardJob(
        run_id=run_id,
        workspace=workspace.root,
        shard=shard,
        attempt=attempt,
        base=setup.base,
        base_digest=setup.base_digest,
        classes=setup.classes,
        method=setup.method,
        training=setup.training,
        plan=setup.plan,
        flags=flags,
        insecure_seed=seed,
    )


def _first(failures: Sequence[ShardFailure]) -> Exception:
    """The first failure, telling how many there were."""
    first = min(failures, key=lambda failure: failure.shard)
    error = first.error
    if not isinstance(error, PrivshardError):
        return error
    others = f" ({len(failures) - 1} other shards failed too.)" if len(failures) > 1 else ""
    return type(error)(f"Shard {first.shard}: {error.message}{others}", remedy=error.remedy)
