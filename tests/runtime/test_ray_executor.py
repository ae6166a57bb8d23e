"""The Ray executor on one small cluster: equal to local, queues, retries, refuses, releases, never hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from privshard.core.errors import BudgetError, InputError, ResourceError
from privshard.core.jobs import Progress, ShardFailure, ShardResult
from privshard.runtime.local import LocalExecutor
from privshard.runtime.ray_executor import RayExecutor

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs and one GPU that exists only on paper."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this test
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    assert ray.is_initialized()  # no executor may shut down what it did not start
    ray.shutdown()


@pytest.fixture
def on_ray(cluster):
    """A function that builds executors on the cluster, without GPUs unless told."""
    made = []

    def make(run, **settings) -> RayExecutor:
        made.append(RayExecutor(run, **{"gpus_per_shard": 0, "schedule_timeout_s": 60.0, **settings}))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def result(job, **tensors) -> ShardResult:
    return ShardResult(job.run_id, job.shard, job.attempt, tensors, "tangent", (), 0, {})


def run_torch(job, base_state, on_progress) -> ShardResult:
    """Sums whose rounding depends on the thread count, on top of the base's weights."""
    import torch

    generator = torch.Generator().manual_seed(job.insecure_seed + job.shard)
    x = torch.randn(300_000, generator=generator)
    total = (x * torch.from_numpy(base_state["w"].copy())).sum()
    return result(job, total=total.numpy(), x=x[:5].numpy(), threads=np.array(torch.get_num_threads()))


def run_with_marks(job, base_state, on_progress) -> ShardResult:
    """Records how many ran at once."""
    mark = Path(job.workspace, f"at-work-{job.shard}")
    mark.touch()
    deadline = time.monotonic() + 120
    at_once = 0
    while time.monotonic() < deadline and at_once < base_state["wait_for"]:
        at_once = max(at_once, len(list(Path(job.workspace).glob("at-work-*"))))
        time.sleep(0.05)
    time.sleep(0.3)
    at_once = max(at_once, len(list(Path(job.workspace).glob("at-work-*"))))
    mark.rename(mark.with_name(f"done-{job.shard}"))
    return result(job, at_once=np.array(at_once), gpus=np.array(os.environ.get("CUDA_VISIBLE_DEVICES")))


def run_and_report(job, base_state, on_progress) -> ShardResult:
    """Works until its driver has heard of it, then takes many more steps."""
    heard, done, more = Path(job.workspace, "heard"), 0, 10_000
    while not heard.exists():
        done += 1
        on_progress(Progress(job.run_id, job.shard, "steps", done, 10**9))
        time.sleep(0.01)
    for left in reversed(range(more)):
        on_progress(Progress(job.run_id, job.shard, "steps", done + more - left, done + more))
    return result(job)


def run_troubled(job, base_state, on_progress) -> ShardResult:
    """Shard 1 raises, shard 2 dies the first time, shard 3 sleeps for ever."""
    mark = Path(job.workspace, f"tried-{job.shard}")
    first = not mark.exists()
    mark.touch()
    if job.shard == 1:
        raise BudgetError("too much", remedy="less")
    if job.shard == 2 and first:
        os._exit(1)
    if job.shard == 3:
        time.sleep(1e6)
    return result(job, w=np.zeros(2))


def by_shard(outcomes) -> dict:
    return {outcome.shard: outcome for outcome in outcomes}


def wait_until_free(ray) -> bool:
    """Whether all resources come back."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        free = ray.available_resources()
        if free.get("CPU") == 2 and free.get("GPU") == 1:
            return True
        time.sleep(0.1)
    return False


def test_results_are_bit_equal_to_local_and_writable(on_ray, cluster, make_job, monkeypatch) -> None:
    puts = []
    put = cluster.put
    monkeypatch.setattr(cluster, "put", lambda value: puts.append(value) or put(value))
    base = {"w": np.linspace(0, 1, 300_000, dtype=np.float32)}
    jobs = [make_job(0, threads=1), make_job(1, threads=2)]
    local = by_shard(LocalExecutor(run_torch, base_state=base).train(jobs, print))
    executor = on_ray(run_torch, base_state=base)
    remote = by_shard(executor.train(jobs, print))
    for shard in (0, 1):
        assert remote[shard].run_id == local[shard].run_id
        assert remote[shard].tensors.keys() == local[shard].tensors.keys()
        for name, array in local[shard].tensors.items():
            assert remote[shard].tensors[name].tobytes() == array.tobytes(), name
            assert remote[shard].tensors[name].flags.writeable
        assert remote[shard].tensors["threads"] == shard + 1
    assert executor.call(_first_weight, base) == 0.0
    assert len(puts) == 1  # the base, once, for all jobs and calls
    with pytest.raises(ZeroDivisionError):
        executor.call(divmod, 1, 0)


def _first_weight(base_state) -> float:
    assert not base_state["w"].flags.writeable  # straight from the object store
    return float(base_state["w"][0])


def test_more_jobs_than_slots_queue_and_release_their_workers(on_ray, cluster, make_job) -> None:
    outcomes = by_shard(
        on_ray(run_with_marks, base_state={"wait_for": np.array(0)}).train([make_job(s) for s in range(5)], print)
    )
    assert sorted(outcomes) == list(range(5))
    assert all(1 <= outcome.tensors["at_once"] <= 2 for outcome in outcomes.values())
    assert all(outcome.tensors["gpus"] == "" for outcome in outcomes.values())  # asked for none, sees none
    assert wait_until_free(cluster)


def test_two_halves_share_one_gpu_at_once(on_ray, make_job) -> None:
    executor = on_ray(run_with_marks, base_state={"wait_for": np.array(2)}, gpus_per_shard="auto")
    outcomes = by_shard(executor.train([make_job(0), make_job(1)], print))
    assert [int(outcomes[shard].tensors["at_once"]) for shard in (0, 1)] == [2, 2]
    assert [str(outcomes[shard].tensors["gpus"]) for shard in (0, 1)] == ["0", "0"]


def test_errors_keep_their_class_and_deaths_are_retried_under_the_same_run(on_ray, cluster, make_job) -> None:
    outcomes = by_shard(on_ray(run_troubled).train([make_job(shard) for shard in range(3)], print))
    assert isinstance(outcomes[0], ShardResult)
    raised = outcomes[1]
    assert isinstance(raised, ShardFailure)
    assert type(raised.error) is BudgetError
    assert (raised.error.message, raised.error.remedy) == ("too much", "less")
    assert not raised.released
    retried = outcomes[2]
    assert isinstance(retried, ShardResult)
    assert (retried.run_id, retried.attempt) == ("run-2", 0)
    assert wait_until_free(cluster)


def test_progress_comes_during_the_work_and_to_its_end(on_ray, make_job) -> None:
    news: list[Progress] = []
    job = make_job(0)

    def hear(progress: Progress) -> None:
        news.append(progress)
        Path(job.workspace, "heard").touch()

    list(on_ray(run_and_report).train([job], hear))
    assert [progress.done for progress in news] == sorted({progress.done for progress in news})
    assert news[0].total == 10**9  # it came while the worker waited for it
    assert (news[-1].done, news[-1].shard) == (news[-1].total, 0)
    assert len(news) < 1_000 < news[-1].done  # thinned out


def test_a_request_that_never_fits_is_refused_before_anything_starts(on_ray, make_job) -> None:
    with pytest.raises(ResourceError, match=r"2 GPUs and 1 CPU; .* 1 machine \(1 GPU and 2 CPUs\)"):
        on_ray(run_troubled, gpus_per_shard=2).train([make_job(0)], print)
    assert not Path(make_job(0).workspace, "tried-0").exists()


def test_a_cluster_busy_with_others_is_a_failure_in_time(on_ray, cluster, make_job) -> None:
    other = cluster.remote(num_cpus=2)(_Occupant).remote()
    try:
        cluster.get(other.here.remote(), timeout=120)
        outcomes = by_shard(on_ray(run_troubled, schedule_timeout_s=1).train([make_job(0), make_job(2)], print))
    finally:
        cluster.kill(other)
    for outcome in outcomes.values():
        assert isinstance(outcome.error, ResourceError)
        assert "0 CPUs are free" in str(outcome.error)
        assert not outcome.released
    assert wait_until_free(cluster)


class _Occupant:
    def here(self) -> bool:
        return True


def test_abandoning_the_iterator_kills_the_workers(on_ray, cluster, make_job) -> None:
    outcomes = on_ray(run_troubled).train([make_job(0), make_job(3)], print)
    assert next(outcomes).shard == 0
    outcomes.close()
    assert wait_until_free(cluster)


def test_closing_the_executor_kills_the_workers_of_an_open_iterator(on_ray, cluster, make_job) -> None:
    executor = on_ray(run_troubled)
    outcomes = executor.train([make_job(0), make_job(3)], print)
    assert next(outcomes).shard == 0
    executor.close()
    assert wait_until_free(cluster)


def test_a_workspace_out_of_sight_fails_the_job_clearly(on_ray, make_job) -> None:
    (failure,) = on_ray(run_troubled).train([make_job(0, workspace="/no/such/workspace")], print)
    assert isinstance(failure.error, ResourceError)
    assert "cannot see the workspace /no/such/workspace" in str(failure.error)


def test_two_jobs_under_one_run_id_are_refused(on_ray, make_job) -> None:
    with pytest.raises(InputError, match="Run ids must differ"):
        on_ray(run_troubled).train([make_job(0), make_job(0)], print)


def test_a_ray_of_its_own_is_quiet_even_when_a_worker_dies_and_is_shut_down() -> None:
    """stdout belongs to --json."""
    done = subprocess.run([sys.executable, "-c", _OWN_RAY], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "A worker died before it returned; Ray is initialized: False\n"
    assert done.stderr == ""


_OWN_RAY = """
import os, time
from privshard.core.errors import ResourceError
from privshard.runtime.ray_executor import RayExecutor
with RayExecutor(print, address="local", gpus_per_shard=0, max_retries=1) as executor:
    try:
        executor.call(os._exit, 1)
    except ResourceError as error:
        time.sleep(1)
        what = error.message.partition(":")[0]
import ray
print(f"{what}; Ray is initialized: {ray.is_initialized()}")
"""
