"""Training shards of a workspace: reserve, run, keep, commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from privshard.api.setup import Setup
from privshard.core.errors import PrivshardError, ResourceError
from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import OnProgress, Progress, ShardFailure, ShardJob, ShardResult
from privshard.core.model import ComponentRecord
from privshard.store.components import component_id, curvature_digest, parameters_digest
from privshard.store.views import NewRun, Reservation
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
) -> dict[int, str]:
    """A committed component for each of `shards`, by a new attempt; shard -> component.

    Every attempt is reserved in the ledger before any worker starts; the limit refuses (BudgetError) before that. The
    ledger marks a run before its result leaves its worker, so an attempt that a dead controller left without that mark
    provably let nothing out: it is taken up again under the same reservation. A failure raises after the other shards
    were kept. Attempts of which nothing left a worker are voided, so they cost nothing; whatever is unclear stays
    spent. `stop` ends all workers, so that after an interrupt nothing can leave them any more.
    """
    from privshard.privacy.budget import admit, admit_workspace

    runs = _runs(workspace, setup, shards)
    workspace.ledger.reserve_all(
        runs, plan=setup.plan, admit=admit(setup.limit), admit_workspace=admit_workspace(setup.limit), marked=True
    )
    seed = workspace.ledger.get("insecure_seed")
    jobs = [_job(workspace, setup, run=run, flags=flags, seed=seed) for run in runs]
    unreleased = {job.run_id for job in jobs}
    results: dict[int, str] = {}
    failures: list[ShardFailure] = []

    def mark(run_id: str) -> None:
        unreleased.discard(run_id)
        workspace.ledger.release(run_id)

    with workspace.ledger.kept_open():
        try:
            for outcome in trainer.train(jobs, on_progress, before_release=mark):
                if isinstance(outcome, ShardFailure):
                    failures.append(outcome)
                    if outcome.released and outcome.run_id in unreleased:
                        mark(outcome.run_id)
                    elif not outcome.released:
                        unreleased.discard(outcome.run_id)
                        workspace.ledger.void(outcome.run_id, reason="it failed before anything left the worker")
                    continue
                # the result is in this process by now: an interrupt can't undo that, so it counts as spent
                unreleased.discard(outcome.run_id)
                results[outcome.shard] = keep(workspace, setup, outcome)
                on_progress(Progress("shards", None, "shards", len(results), len(jobs)))
        except BaseException:
            stop()
            with suppress(
                ResourceError
            ):  # what can't be voided now was still not released: the next run takes it up again
                for run_id in sorted(unreleased):
                    workspace.ledger.void(run_id, reason="it was stopped before anything left the worker")
            raise
    workspace.objects.sweep()  # of what workers that were killed left half-written
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
    curvature = {name: np.array(array) for name, array in result.curvature.items()}
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
        curvature=curvature_digest(curvature) if curvature else None,
    )
    private = {
        "examples": list(result.example_ids),
        "num_units": result.num_units,
        "timing_s": dict(result.timing_s),
    }
    workspace.save_component(record, arrays, private=private, parameters=parameters, curvature=curvature)
    workspace.ledger.commit(result.run_id, component=identity)
    return identity


def _runs(workspace: Workspace, setup: Setup, shards: Sequence[int]) -> list[NewRun]:
    """For each shard the attempt that a dead controller left with nothing released, or its next one."""
    latest: dict[int, Reservation] = {}
    for run in workspace.ledger.reservations():
        if run.attempt >= (latest[run.shard].attempt if run.shard in latest else 0):
            latest[run.shard] = run
    runs = []
    for shard in shards:
        last = latest.get(shard)
        if last is not None and last.state == "reserved" and not last.released and last.plan == setup.plan:
            runs.append(NewRun(last.run_id, shard, last.attempt))
            continue
        attempt = last.attempt + 1 if last is not None else 0
        runs.append(NewRun(f"shard-{shard:03d}-attempt-{attempt:03d}", shard, attempt))
    return runs


def _job(
    workspace: Workspace,
    setup: Setup,
    *,
    run: NewRun,
    flags: ExecutionFlags,
    seed: int | None,
) -> ShardJob:
    return ShardJob(
        run_id=run.run_id,
        workspace=workspace.root,
        names=workspace.objects.names(workspace.shard_dir(run.shard)),
        shard=run.shard,
        attempt=run.attempt,
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
