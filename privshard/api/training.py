"""`train`: from a recipe to a committed model version, resuming whatever is there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from privshard.api import constants, evaluation, facts
from privshard.api.recipe import Recipe
from privshard.api.setup import Planned, Setup, flags_of, make_setup, partition_of
from privshard.api.shards import adopt, committed, train_shards
from privshard.core.errors import InputError
from privshard.core.jobs import OnProgress, Progress
from privshard.core.model import Composition
from privshard.core.partition import Partition
from privshard.store.ledger import Ledger
from privshard.store.workspace import Workspace


def train(recipe: Recipe, *, workspace: str, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Train one component a shard, compose them with equal weights, evaluate, and commit a model version.

    The same recipe on the same workspace resumes, or returns what is there; another recipe is refused. Everything that
    can be refused is refused before a private row is read. Returns the contract's `train` object.
    """
    started = time.perf_counter()
    tell = on_progress or (lambda _: None)
    _check_recipe(recipe, workspace)
    with (
        Workspace.create(
            workspace, recipe_yaml=recipe.to_yaml(), recipe_digest=recipe.digest, insecure_seed=recipe.insecure_seed
        ) as ws,
        ws.hold(),
    ):
        planned = _set_up(ws, recipe, tell)
        set_up_s = time.perf_counter() - started
        setup = planned.setup if planned else Setup.load(ws)
        timing = {"set_up": set_up_s}
        if ws.ledger.current_model() is None:
            timing |= _learn(ws, recipe, setup, base_state=planned.base.state if planned else None, tell=tell)
        return {**facts.training_report(ws, setup), "timing_s": {**timing, "total": time.perf_counter() - started}}


def plan_training(recipe: Recipe, *, workspace: str) -> dict[str, Any]:
    """What `train` would do: shards, noise, spend, statement and cost. Nothing is written, no private row is read.

    Without a nominal number of units the count would be taken with noise; the plan then leaves `expected_units` open.
    """
    _check_recipe(recipe, workspace)
    nominal = constants.nominal_units(recipe)
    classes = constants.classes_of(recipe, lambda: _labels(recipe))
    counted = nominal is None and recipe.private
    planned = make_setup(
        recipe,
        classes=classes,
        nominal=float(nominal or recipe.shards),
        count_noise_multiplier=constants.COUNT_NOISE_MULTIPLIER if counted else None,
    )
    return facts.plan_report(recipe, planned.setup, workspace=workspace, counted=counted or nominal is None)


def _check_recipe(recipe: Recipe, workspace: str) -> None:
    """Refuse another recipe than the workspace's, naming the keys that differ."""
    from privshard.api.setup import stored_recipe

    place = Path(workspace)
    if "://" in workspace or not Ledger.exists(str(place / "ledger.db")):
        return
    with Workspace.open(workspace) as ws:
        held = stored_recipe(ws)
    changed = held.changed_keys(recipe)
    if changed:
        raise InputError(
            f"Workspace {workspace} belongs to another recipe; it differs in {', '.join(changed[:5])}.",
            remedy=f"Train into another folder with --workspace, or use {place / 'recipe.yaml'}.",
        )


def _set_up(ws: Workspace, recipe: Recipe, tell: OnProgress) -> Planned | None:
    """Ingest, count where needed, calibrate and keep the setup; None where that was done before."""
    if ws.ledger.get("setup") is not None:
        return None
    partition = partition_of(ws, recipe.shards)
    classes = constants.classes_of(recipe, lambda: _labels(recipe))
    nominal = constants.nominal_units(recipe)
    if nominal is not None:  # everything that can be refused is, before a row is read
        make_setup(recipe, classes=classes, nominal=float(nominal), count_noise_multiplier=None)
    if ws.ledger.get("ingested") is None:
        _ingest(ws, recipe, partition, classes, tell)
    noise = None
    if nominal is None and recipe.private:
        noise = constants.COUNT_NOISE_MULTIPLIER
        nominal = _noisy_nominal(ws, recipe, noise)
    elif nominal is None:
        nominal = max(1, facts.count_units(ws, recipe.shards, recipe.privacy.unit))
    planned = make_setup(recipe, classes=classes, nominal=float(nominal), count_noise_multiplier=noise)
    facts.keep_setup(ws, planned.setup)
    return planned


def _ingest(ws: Workspace, recipe: Recipe, partition: Partition, classes: tuple[str, ...], tell: OnProgress) -> None:
    from privshard.data.ingest import ingest

    suppressed = ws.ledger.suppressed()
    ingest(
        constants.source_rows(recipe),
        objects=ws.objects,
        partition=partition,
        hashing_key=ws.secrets.hashing_key,
        classes=classes,
        is_suppressed=lambda subject: ws.subject_hash(subject) in suppressed,
        spill_folder=Path(ws.root) / "ingest.tmp",
        on_progress=lambda done: tell(Progress("ingest", None, "ingest", done, 0)),
    )
    ws.ledger.put("ingested", {"rows": "private"})


def _noisy_nominal(ws: Workspace, recipe: Recipe, noise: float) -> float:
    """The workspace's one noisy count; drawn once, whatever is interrupted."""
    held = ws.ledger.noisy_count()
    if held is None:
        from privshard.privacy.plan import noisy_count
        from privshard.privacy.stream import ChaChaStream, fresh_key, insecure_key

        true = facts.count_units(ws, recipe.shards, recipe.privacy.unit)
        seed = recipe.insecure_seed
        key = fresh_key() if seed is None else insecure_key(seed, shard=-1, attempt=0)
        value = noisy_count(true, noise_multiplier=noise, stream=ChaChaStream(key, purpose="count"))
        held = ws.ledger.record_count(value, noise_multiplier=noise, nominal=value)
    return held.nominal


def _learn(
    ws: Workspace, recipe: Recipe, setup: Setup, *, base_state: Mapping[str, np.ndarray] | None, tell: OnProgress
) -> dict[str, float]:
    """Train what is missing, evaluate and commit the first model version; how long each part took."""
    adopt(ws)
    timing: dict[str, float] = {}
    missing = [shard for shard in range(setup.num_shards) if shard not in committed(ws)]
    if base_state is None:
        from privshard.models.base import load_base

        base_state = load_base(setup.base).state
    started = time.perf_counter()
    if missing:
        with facts.executor(recipe, base_state) as executor:
            train_shards(
                ws,
                setup,
                shards=missing,
                flags=flags_of(recipe),
                trainer=executor,
                stop=executor.close,
                on_progress=tell,
            )
    timing["shards"] = time.perf_counter() - started
    started = time.perf_counter()
    components = [component for _, component in sorted(committed(ws).items())]
    composition = Composition.uniform(setup.base_digest, components)
    cache = evaluation.refresh(
        ws, setup, components=components, flags=flags_of(recipe), base_state=base_state, on_progress=tell
    )
    metrics = evaluation.measure(cache, composition, setup.classes)
    timing["evaluate"] = time.perf_counter() - started
    version = ws.ledger.add_model(composition, reason="train", metrics=metrics)
    facts.write_model(ws, version, composition)
    ws.write_manifest()
    return timing


def _labels(recipe: Recipe) -> set[str]:
    """All labels of the rows; only asked for without differential privacy."""
    return {row.label for row in constants.source_rows(recipe)}
