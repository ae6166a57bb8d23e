"""Facts that commands share: units, spends, the reports built from the ledger, and the executor of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from privshard.api.recipe import Recipe
from privshard.api.setup import Setup
from privshard.api.shards import committed
from privshard.core.model import Composition
from privshard.core.privacy import PrivacySpend
from privshard.store.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np

    from privshard.runtime.local import LocalExecutor
    from privshard.runtime.ray_executor import RayExecutor


def version_name(version: int | None) -> str | None:
    """1 -> "v0001"."""
    return None if version is None else f"v{version:04d}"


def count_units(workspace: Workspace, num_shards: int, unit: str) -> int:
    """The true number of units of privacy among the training rows. Private."""
    from privshard.data.shards import read_partition
    from privshard.store.layout import shard_dir

    rows = [read_partition(workspace.objects, shard_dir(shard)) for shard in range(num_shards)]
    return sum(len(part) if unit == "example" else part.num_subjects for part in rows)


def keep_setup(workspace: Workspace, setup: Setup) -> None:
    """Commit the setup, and the public facts that the manifest shows."""
    text = plain_statement(setup, setup.spend(1))
    with workspace.ledger.transaction():
        workspace.ledger.put("base_digest", setup.base_digest)
        workspace.ledger.put("privacy", {**vars(setup.spend(1)), "limit": setup.limit})
        workspace.ledger.put("statement", text)
        if setup.public is not None:
            workspace.ledger.put("public", dict(setup.public))
        workspace.ledger.put("setup", setup.to_json())


def plain_statement(setup: Setup, spend: PrivacySpend) -> str:
    """The guarantee in plain English, and what of the model it doesn't reach because public rows taught it."""
    from privshard.privacy.statement import statement, with_public

    text = statement(setup.plan, spend, num_shards=setup.num_shards, limit=setup.limit)
    if setup.public is None:
        return text
    return with_public(text, num_rows=setup.public["num_rows"], core=setup.public["core"], head=setup.public["head"])


def shard_spends(workspace: Workspace, setup: Setup) -> dict[int, PrivacySpend]:
    """What every shard has spent so far, dropped components and failed attempts included."""
    trained = dict.fromkeys(range(setup.num_shards), 0)
    for run in workspace.ledger.reservations():
        trained[run.shard] += run.state != "voided"
    return {shard: setup.spend(times) for shard, times in trained.items()}


def privacy_report(workspace: Workspace, setup: Setup, *, edits: int | None = None) -> dict[str, Any]:
    """The contract's `privacy` object: the whole release, by parallel composition over the shards.

    edits: how many the composition holds; None means the current model. One is enough to void the guarantee of the
    composition, since edits are learnt without differential privacy.
    """
    from privshard.privacy.plan import composition_spend
    from privshard.privacy.statement import with_edits

    spend = composition_spend(shard_spends(workspace, setup), partition="keyed_hash")
    text = plain_statement(setup, spend)
    if not setup.classes_public:
        text += " The list of classes was read from the rows: a class may tell that somebody had it."
    if edits is None:
        model = workspace.ledger.current_model()
        edits = len(model.composition.added) if model else 0
    if edits:
        text, spend = with_edits(text, num_edits=edits), replace(spend, epsilon=None)
    if workspace.ledger.get("insecure_seed") is not None:
        text = f"Not private: randomness came from insecure_seed, for tests. With secret randomness: {text}"
    return {**vars(spend), "statement": text}


def training_report(workspace: Workspace, setup: Setup) -> dict[str, Any]:
    """The contract's `train` object, without timing."""
    model = workspace.ledger.current_model()
    assert model is not None
    records = [workspace.load_record(component) for component in model.composition.averaged]
    private = {record.shard: workspace.objects.read_json(workspace.private_path(record.id)) for record in records}
    num_subjects = _subjects(workspace, setup.num_shards)
    shards = range(setup.num_shards)
    return {
        "workspace": workspace.root,
        "model": version_name(model.version),
        "base": {"name": setup.base.model, "digest": setup.base_digest},
        "method": _method(setup),
        "public": setup.public,
        "components": [
            {"id": r.id, "shard": r.shard, "epsilon": r.spend.epsilon, "delta": r.spend.delta}
            for r in sorted(records, key=lambda record: record.shard)
        ],
        "metrics": dict(model.metrics or {}),
        "privacy": privacy_report(workspace, setup),
        "confidential": {
            "num_examples": [len(private[s]["examples"]) if s in private else None for s in shards],
            "num_subjects": num_subjects,
            "train_s": [sum(private[s]["timing_s"].values()) if s in private else None for s in shards],
        },
    }


def _method(setup: Setup) -> dict[str, Any]:
    """The method, its options, and where it has several engines the one that computes it."""
    engine = {} if setup.engine is None else {"engine": setup.engine}
    return {"name": setup.method.name, **setup.method.options, **engine}


def plan_report(recipe: Recipe, setup: Setup, *, workspace: str, counted: bool) -> dict[str, Any]:
    """The contract's `train --dry-run` object."""
    plan, spend = setup.plan, setup.spend(1)
    params = recipe.privacy_params()
    counted = counted or not plan.private
    shown = {name: None if counted and name == "expected_units" else getattr(plan, name) for name in _NOISE}
    steps_examples = None if counted else plan.expected_units * plan.steps * setup.num_shards
    return {
        "workspace": workspace,
        "base": {"name": setup.base.model, "digest": setup.base_digest},
        "method": _method(setup),
        "public": setup.public,
        "shards": setup.num_shards,
        "noise": shown,
        "privacy": {
            **vars(spend),
            "epsilon_limit": setup.limit,
            "planned_retrains": params.planned_retrains,
            "statement": plain_statement(setup, spend),
        },
        "cost": {"gradients": steps_examples, "epsilon_after_trainings": list(setup.spends)},
    }


def write_model(workspace: Workspace, version: int, composition: Composition) -> None:
    """models/vNNNN.json, for people; the ledger is what counts."""
    from privshard.unlearning.model_files import describe_model

    workspace.objects.write_json(workspace.model_path(version), describe_model(workspace, version, composition))


def executor(
    recipe: Recipe, base_state: Mapping[str, np.ndarray], *, urgent: bool = False
) -> LocalExecutor | RayExecutor:
    """Where the recipe's shards run. urgent: before what other trainings have queued on the same cluster."""
    from privshard.api.worker import run_job
    from privshard.runtime import make_executor

    return make_executor(
        run_job,
        base_state=base_state,
        address=recipe.ray.address,
        gpus_per_shard=recipe.ray.gpus_per_shard,
        cpus_per_shard=recipe.ray.cpus_per_shard,
        schedule_timeout_s=recipe.ray.schedule_timeout_s,
        queue_timeout_s=recipe.ray.queue_timeout_s,
        stall_timeout_s=recipe.ray.stall_timeout_s,
        urgent=urgent,
    )


def live_components(workspace: Workspace) -> dict[int, str]:
    """Shard -> component of the current model."""
    model = workspace.ledger.current_model()
    live = set(model.composition.components) if model else set()
    return {shard: component for shard, component in committed(workspace).items() if component in live}


_NOISE = ("noise_multiplier", "sample_rate", "steps", "max_grad_norm", "expected_units")


def _subjects(workspace: Workspace, num_shards: int) -> list[int]:
    from privshard.data.shards import read_partition
    from privshard.store.layout import shard_dir

    return [read_partition(workspace.objects, shard_dir(shard)).num_subjects for shard in range(num_shards)]
