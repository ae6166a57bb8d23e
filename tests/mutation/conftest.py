"""Detectors: what an audit, and what a whole training, has to say about the code as it is at the moment."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_digits import recipe_values, write_people

from privshard.api import train
from privshard.api.recipe import Recipe
from privshard.api.setup import Setup
from privshard.api.worker import root_key
from privshard.audit.removal import removal_audit
from privshard.audit.step import step_audit
from privshard.core.errors import InputError, PrivshardError
from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import MethodSpec, ShardJob, TrainingParams
from privshard.core.model import BaseSpec
from privshard.core.privacy import PrivacyParams
from privshard.privacy.plan import make_plan, spend_of
from privshard.store.workspace import Workspace

CLASSES = [*"0123456789", "ten"]
NOMINAL, SHARDS = 24, 8  # of 8 people 2 are test: at least 2 shards are empty


def production_key(plan: Any) -> Callable[[int, int], bytes]:
    """(shard, attempt) -> the root key that a worker takes for that job."""

    def key(shard: int, attempt: int) -> bytes:
        job = ShardJob(
            run_id=f"{shard}-{attempt}",
            workspace="",
            shard=shard,
            attempt=attempt,
            base=BaseSpec("none", 2),
            base_digest="",
            classes=("a", "b"),
            method=MethodSpec("head"),
            training=TrainingParams(lr=1.0),
            plan=plan,
            flags=ExecutionFlags(),
        )
        return root_key(job)

    return key


def _complaints(report: Any) -> set[str]:
    failed = {check.name for check in report.checks if not check.ok}
    return failed | ({"contradicted"} if report.contradicted else set())


@pytest.fixture
def audit_complaints() -> Callable[..., set[str]]:
    """What the step audit (removal=True: the removal audit) finds wrong; an error that stops it counts as found."""

    def run(*, rate: float = 1.0, steps: int = 4, canaries: int = 8_000, removal: bool = False) -> set[str]:
        params = PrivacyParams(epsilon=3.0, accountant="prv")
        plan = make_plan(params, sample_rate=rate, steps=steps, nominal_units_per_shard=1000)
        audit = removal_audit if removal else step_audit
        try:
            return _complaints(audit(plan, claim=spend_of([plan]), new_key=production_key(plan), num_canaries=canaries))
        except PrivshardError as error:
            return {type(error).__name__}

    return run


@pytest.fixture
def training_complaints(tmp_path, monkeypatch) -> Callable[[], set[str]]:
    """Train a tiny workspace of which some shards are empty, with fresh entropy, and say what is wrong with it."""
    monkeypatch.delenv("PRIVSHARD_KEYS", raising=False)
    monkeypatch.setenv("PRIVSHARD_KEYS_DIR", str(tmp_path / "keys"))
    data = write_people(tmp_path / "people.parquet")

    def recipe(classes: list[str] | None) -> Recipe:
        section = {"classes": classes, "nominal_examples": NOMINAL}
        return Recipe(**recipe_values(data, data=section, shards=SHARDS, method={"name": "head"}))

    def run() -> set[str]:
        workspace = str(tmp_path / "workspace")
        try:
            train(recipe(None), workspace=str(tmp_path / "unnamed"))
            unnamed = {"classes"}
        except InputError:
            unnamed = set()
        result = train(recipe(CLASSES), workspace=workspace)
        return unnamed | _wrong(Path(workspace), result)

    return run


def _wrong(workspace: Path, result: dict[str, Any]) -> set[str]:
    found = set()
    with Workspace.open(str(workspace)) as ws:
        setup, model = Setup.load(ws), ws.ledger.current_model()
        assert model is not None
        weights = list(model.composition.weights.values())
        tensors = {item["shard"]: ws.load_component(item["id"])[1] for item in result["components"]}
    if sorted(tensors) != list(range(SHARDS)):
        found.add("components")
    if weights != [1 / len(weights)] * len(weights):
        found.add("weights")
    if list(setup.classes) != CLASSES:
        found.add("classes")
    if setup.plan.expected_units != setup.plan.sample_rate * NOMINAL / SHARDS:
        found.add("normaliser")
    empty = [shard for shard, number in enumerate(result["confidential"]["num_examples"]) if number == 0]
    noise = {shard: tensors[shard]["head.weight"].ravel() for shard in empty}  # its entries are independent
    if any(not values.any() for values in noise.values()):
        found.add("no noise")
    for one, other in combinations((values for values in noise.values() if values.any()), 2):
        if abs(np.corrcoef(one, other)[0, 1]) > 6 / len(one) ** 0.5:
            found.add("shared noise")
    return found
