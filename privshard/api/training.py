"""`train`: from a recipe to a committed model version, resuming whatever is there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.api import constants, evaluation, facts
from privshard.api.preparation import Prepared, count_noise, is_set_up, new_or_held, prepare
from privshard.api.recipe import Recipe
from privshard.api.setup import Setup, flags_of, partition_of
from privshard.api.shards import adopt, committed, train_shards
from privshard.api.watching import watched
from privshard.core.jobs import OnProgress, Progress
from privshard.core.model import Composition
from privshard.core.partition import Partition
from privshard.store.disk import make_folder
from privshard.store.public_parts import save_public_parts
from privshard.store.workspace import Workspace
from privshard.unlearning.clean_up import clean_up, is_clean

if TYPE_CHECKING:
    import numpy as np

    from privshard.runtime.local import LocalExecutor
    from privshard.runtime.ray_executor import RayExecutor
    from privshard.runtime.record import RunRecord
    from privshard.runtime.watch import Watch


def train(
    recipe: Recipe,
    *,
    workspace: str,
    on_progress: OnProgress | None = None,
    record: RunRecord | None = None,
    cancelled: Callable[[], bool] | None = None,
    controller: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train one component a shard, compose them as the recipe says, evaluate, and commit a model version.

    The same recipe on the same workspace resumes, or returns what is there; another recipe is refused. Everything that
    can be refused is refused before a private row is read. Returns the contract's `train` object.
    record, cancelled, controller: of a detached controller, see `api.running`.
    """
    started = time.perf_counter()
    tell = _told(record, on_progress)
    prepared = None if is_set_up(recipe, workspace) else prepare(recipe, on_progress=tell)
    with ExitStack() as stack:
        runner = None
        if prepared is not None:  # missing resources are refused before a row is read
            runner = stack.enter_context(_runner(recipe, prepared.planned.base.state))
            runner.executor.check(recipe.shards)
        ws = stack.enter_context(new_or_held(recipe, workspace))
        if ws.ledger.get("setup") is None:
            setup = _set_up(ws, recipe, prepared or prepare(recipe, on_progress=tell), tell)
        else:
            setup = Setup.load(ws)
        timing = {"set_up": time.perf_counter() - started}
        if ws.ledger.current_model() is None:
            if runner is None:
                from privshard.api.worker import open_base

                base = open_base(setup.base, None, digest=setup.base_digest, objects=ws.objects)
                runner = stack.enter_context(_runner(recipe, base.state))
            with watched(
                ws,
                setup,
                kind="train",
                on_progress=on_progress or (lambda _: None),
                record=record,
                cancelled=cancelled,
                controller=controller,
            ) as watch:
                timing |= _learn(ws, recipe, setup, runner=runner, watch=watch)
        elif not is_clean(ws):  # the model was committed, and then its files could not be written
            clean_up(ws)
        return {**facts.training_report(ws, setup), "timing_s": {**timing, "total": time.perf_counter() - started}}


def plan_training(recipe: Recipe, *, workspace: str) -> dict[str, Any]:
    """What `train` would do: shards, noise, spend, statement and cost. Nothing is written, no private row is read.

    Without a nominal number of units the count would be taken with noise; the plan then leaves `expected_units` open.
    """
    is_set_up(recipe, workspace)
    prepared = prepare(recipe)
    return facts.plan_report(recipe, prepared.planned.setup, workspace=workspace, counted=prepared.counted)


def _set_up(ws: Workspace, recipe: Recipe, prepared: Prepared, tell: OnProgress) -> Setup:
    """Ingest, count where needed, calibrate and keep the setup."""
    if ws.ledger.get("ingested") is None:
        _ingest(ws, recipe, partition_of(ws, recipe.shards), prepared.classes, tell)
    planned = prepared.planned
    if prepared.counted:
        planned = prepared.with_nominal(recipe, _count(ws, recipe))
    if planned.public is not None:
        save_public_parts(ws.objects, planned.public.arrays)
    facts.keep_setup(ws, planned.setup)
    return planned.setup


@dataclass(frozen=True)
class _Runner:
    """Where shards run, and the base's weights that it holds."""

    executor: LocalExecutor | RayExecutor
    base_state: Mapping[str, np.ndarray]


@contextmanager
def _runner(recipe: Recipe, base_state: Mapping[str, np.ndarray]) -> Iterator[_Runner]:
    with facts.executor(recipe, base_state) as executor:
        yield _Runner(executor, base_state)


def _ingest(ws: Workspace, recipe: Recipe, partition: Partition, classes: tuple[str, ...], tell: OnProgress) -> None:
    from privshard.data.ingest import ingest

    suppressed, spill = ws.ledger.suppressed(), _spill_folder(ws)
    rows = 0

    def count(done: int) -> None:
        nonlocal rows
        rows = done
        tell(Progress("ingest", None, "ingest", done, 0))

    ingest(
        constants.source_rows(recipe),
        objects=ws.objects,
        partition=partition,
        hashing_key=ws.secrets.hashing_key,
        classes=classes,
        is_suppressed=lambda subject: ws.subject_hash(subject) in suppressed,
        spill_folder=spill,
        on_progress=count,
    )
    shutil.rmtree(spill, ignore_errors=True)
    tell(Progress("ingest", None, "ingest", rows, rows))
    ws.ledger.put("ingested", {"rows": "private"})


def _spill_folder(ws: Workspace) -> Path:
    """Where rows wait while they are sorted: in the workspace, or, where that is elsewhere, in a folder of its own on
    this machine, so that the next ingest finds and removes what a killed one left."""
    if ws.objects.is_local:
        return Path(ws.root) / "ingest.tmp"
    from platformdirs import user_cache_dir

    folder = Path(user_cache_dir("privshard")) / ws.id
    make_folder(folder, mode=0o700)
    return folder


def _count(ws: Workspace, recipe: Recipe) -> float:
    """The number of units: the workspace's one noisy count, drawn once whatever is interrupted."""
    noise, held = count_noise(recipe), ws.ledger.noisy_count()
    if held is not None:
        return held.nominal
    assert noise is not None
    true = facts.count_units(ws, recipe.shards, recipe.privacy.unit)
    from privshard.privacy.plan import noisy_count
    from privshard.privacy.stream import ChaChaStream, fresh_key, insecure_key

    seed = recipe.insecure_seed
    key = fresh_key() if seed is None else insecure_key(seed, shard=-1, attempt=0)
    value = noisy_count(true, noise_multiplier=noise, stream=ChaChaStream(key, purpose="count"))
    return ws.ledger.record_count(value, noise_multiplier=noise, nominal=value).nominal


def _told(record: RunRecord | None, on_progress: OnProgress | None) -> OnProgress:
    """Who hears of what comes before the shards."""

    def tell(progress: Progress) -> None:
        if record is not None:
            record.on_progress(progress)
        if on_progress is not None:
            on_progress(progress)

    return tell


def _learn(ws: Workspace, recipe: Recipe, setup: Setup, *, runner: _Runner, watch: Watch) -> dict[str, float]:
    """Train what is missing, evaluate and commit the first model version; how long each part took."""
    adopt(ws)
    watch.on_tick()
    runner.executor.watched_by(on_event=watch.on_event, on_tick=watch.on_tick)
    tell = watch.on_progress
    timing: dict[str, float] = {}
    done = committed(ws)
    missing = [shard for shard in range(setup.num_shards) if shard not in done]
    started = time.perf_counter()
    if missing:
        train_shards(
            ws,
            setup,
            shards=missing,
            flags=flags_of(recipe),
            trainer=runner.executor,
            stop=runner.executor.close,
            on_progress=tell,
        )
    timing["shards"] = time.perf_counter() - started
    started = time.perf_counter()
    components = [component for _, component in sorted(committed(ws).items())]
    composition = Composition.uniform(setup.base_digest, components, combine=recipe.compose.rule)
    cache = evaluation.refresh(
        ws,
        setup,
        components=components,
        flags=flags_of(recipe),
        base_state=runner.base_state,
        on_progress=tell,
        models=[composition],
    )
    metrics = evaluation.measure(cache, composition, setup.classes)
    timing["evaluate"] = time.perf_counter() - started
    version = ws.ledger.add_model(composition, reason="train", metrics=metrics)
    facts.write_model(ws, version, composition)
    ws.write_manifest()
    return timing
