"""Jobs small enough to send anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import MethodSpec, ShardJob, TrainingParams
from privshard.core.model import BaseSpec
from privshard.core.privacy import MechanismPlan

MakeJob = Callable[..., ShardJob]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A function that builds the job of one shard, in a workspace that exists."""

    def make(shard: int = 0, *, threads: int = 1, workspace: str | None = None) -> ShardJob:
        return ShardJob(
            run_id=f"run-{shard}",
            workspace=str(tmp_path) if workspace is None else workspace,
            shard=shard,
            attempt=0,
            base=BaseSpec("vit", num_classes=2),
            base_digest="sha256:0",
            classes=("a", "b"),
            method=MethodSpec("tangent"),
            training=TrainingParams(lr=0.1),
            plan=MechanismPlan("example", 0.5, 2, 1.0, 1.0, 8.0, 1e-5, "rdp"),
            flags=ExecutionFlags(threads=threads),
            insecure_seed=7,
        )

    return make
