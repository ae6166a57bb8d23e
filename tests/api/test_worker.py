"""One job on a worker: which randomness it draws, and what it checks before it reads a row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_digits import recipe_values, write_people

from privshard.api import shard_constants, train, worker
from privshard.api.recipe import Recipe
from privshard.api.setup import Setup, flags_of, stored_recipe
from privshard.core.errors import ResourceError, VerificationError
from privshard.core.jobs import ShardJob
from privshard.store.workspace import Workspace


@pytest.fixture
def job(seeded_workspace) -> ShardJob:
    with Workspace.open(seeded_workspace) as ws:
        setup, flags = Setup.load(ws), flags_of(stored_recipe(ws))
    return ShardJob(
        run_id="run",
        workspace=str(seeded_workspace),
        shard=0,
        attempt=0,
        base=setup.base,
        base_digest=setup.base_digest,
        classes=setup.classes,
        method=setup.method,
        training=setup.training,
        plan=setup.plan,
        flags=flags,
        insecure_seed=3,
    )


def tensors(job):
    return worker.run_job(job, None, lambda _: None).tensors


def equal(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_seeded_randomness_is_a_function_of_seed_shard_and_attempt(job):
    first = tensors(job)
    assert equal(first, tensors(replace(job, run_id="another")))
    assert not equal(first, tensors(replace(job, attempt=1)))
    assert not equal(first, tensors(replace(job, insecure_seed=4)))


def test_without_a_seed_no_two_trainings_draw_alike(job):
    fresh = replace(job, insecure_seed=None)
    assert not equal(tensors(fresh), tensors(fresh))


def test_another_base_is_refused_before_a_row_is_read(job, monkeypatch):
    monkeypatch.setattr(worker, "read_partition", lambda *_: pytest.fail("rows were read"))
    with pytest.raises(VerificationError, match="expected digest 0000"):
        worker.run_job(replace(job, base_digest="0" * 64), None, lambda _: None)


def test_a_missing_gpu_is_a_missing_resource(job, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"execution\.device: expected a CUDA GPU for 'cuda:1'"):
        worker.pick_device(replace(job.flags, device="cuda:1"))
    assert worker.pick_device(job.flags) == "cpu"


def test_no_private_count_decides_on_compiling(tmp_path, monkeypatch):
    """Shards of different sizes ask with the same public number."""
    asked = []
    monkeypatch.setattr(
        shard_constants, "worth_compiling", lambda flags, *, device, num_images: bool(asked.append(num_images))
    )
    data = write_people(tmp_path / "people.parquet")
    train(Recipe(**recipe_values(data, method={"name": "head"})), workspace=str(tmp_path / "w"))
    assert asked.count(12.0) >= 1  # 24 nominal examples over 2 shards; held-out rows ask with their own number
    assert set(asked) <= {12.0, 8}
