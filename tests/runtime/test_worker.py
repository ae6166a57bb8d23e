"""A worker without Ray: its constructor takes nothing, and its handshake refuses what cannot work."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import numpy as np
import pytest

from privshard.core.errors import ResourceError
from privshard.core.jobs import Progress, ShardResult
from privshard.runtime.worker import Handshake, ShardWorker, software_versions


@pytest.fixture(autouse=True)
def _same_environment_after(monkeypatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "before")


def handshake(**changes) -> Handshake:
    return Handshake(**{"versions": software_versions(), "workspace": None, "threads": 1, "gpus": 0.0, **changes})


def test_nothing_goes_through_the_constructor() -> None:
    parameters = set(inspect.signature(ShardWorker).parameters)
    assert parameters <= {"_ray_trace_ctx"}  # which Ray adds for itself


@pytest.mark.parametrize("package", ["privshard", "python", "numpy", "torch"])
def test_other_software_is_refused(package) -> None:
    with pytest.raises(ResourceError, match=rf"{package} \S+ instead of 0\.0") as refused:
        ShardWorker().prepare(handshake(versions={**software_versions(), package: "0.0"}))
    assert "same versions" in refused.value.remedy


def test_a_workspace_that_is_not_here_is_refused(tmp_path: Path) -> None:
    ShardWorker().prepare(handshake(workspace=str(tmp_path)))
    ShardWorker().prepare(handshake(workspace="s3://bucket/elsewhere"))
    with pytest.raises(ResourceError, match="cannot see the workspace"):
        ShardWorker().prepare(handshake(workspace=str(tmp_path / "missing")))


def test_threads_and_gpus_are_set_before_the_work() -> None:
    ShardWorker().prepare(handshake(threads=3, gpus=0.5))
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "before"
    ShardWorker().prepare(handshake(threads=None, gpus=0.0))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_keys_and_the_ledgers_address_are_not_for_workers(monkeypatch) -> None:
    """They are the controller's; a machine that has both in its environment hands them to every process on it."""
    monkeypatch.setenv("PRIVSHARD_KEYS", "{}")
    monkeypatch.setenv("PRIVSHARD_LEDGER", "postgresql://ada:hunter2@db/privshard")
    worker = ShardWorker()
    worker.prepare(handshake())
    worker.call(_secrets_here, None)
    assert worker.take() == {}
    monkeypatch.setenv("PRIVSHARD_KEYS", "{}")
    with pytest.raises(ResourceError, match="other software"):
        worker.prepare(handshake(versions={"privshard": "0.0"}))
    assert _secrets_here() == {}


def _secrets_here() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PRIVSHARD_KEYS", "PRIVSHARD_LEDGER") if name in os.environ}


def test_train_keeps_its_result_and_returns_the_news_that_nobody_took(make_job) -> None:
    worker = ShardWorker()

    def run(job, base_state, on_progress) -> ShardResult:
        on_progress(Progress(job.run_id, job.shard, "steps", 1, 2))
        assert [news.done for news in worker.news()] == [1]
        on_progress(Progress(job.run_id, job.shard, "steps", 2, 2))
        return ShardResult(job.run_id, job.shard, 0, {"w": base_state["w"] + 1}, "tangent", (), 0, {})

    news = worker.train(run, make_job(), {"w": np.zeros(1)})
    assert [progress.done for progress in news] == [2]
    assert worker.take().tensors["w"] == 1
    assert worker.take() is None


def test_a_new_handshake_forgets_the_last_result(make_job) -> None:
    worker = ShardWorker()
    worker.call(str, None, 7)
    worker.prepare(handshake())
    assert worker.take() is None


@pytest.mark.parametrize(("gpus", "capped"), [(0.25, [0.25]), (1.0, []), (2.0, [])])
def test_a_share_of_a_gpu_is_a_share_of_its_memory(gpus, capped, monkeypatch) -> None:
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    place = ShardWorker().prepare(handshake(gpus=gpus))
    assert shares == capped
    assert (place.gpus, place.gpu_share, place.pid) == (("3",), sum(capped), os.getpid())
