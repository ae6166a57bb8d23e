"""The local executor: order, failures, threads, a base that nobody can write to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from privshard.core.errors import InputError
from privshard.core.jobs import Progress, ShardFailure, ShardResult
from privshard.runtime import make_executor
from privshard.runtime.local import LocalExecutor


def result(job, value=0.0) -> ShardResult:
    return ShardResult(job.run_id, job.shard, job.attempt, {"w": np.full(2, value)}, "tangent", (), 0, {})


def run_or_fail(job, base_state, on_progress) -> ShardResult:
    on_progress(Progress(job.run_id, job.shard, "steps", 1, 1))
    if job.shard == 1:
        raise InputError("no such shard", remedy="another")
    return result(job, torch.get_num_threads())


def test_jobs_run_in_order_and_a_failure_stops_no_other(make_job) -> None:
    news: list[Progress] = []
    outcomes = list(LocalExecutor(run_or_fail).train([make_job(shard) for shard in range(3)], news.append))
    assert [outcome.shard for outcome in outcomes] == [0, 1, 2]
    failure = outcomes[1]
    assert isinstance(failure, ShardFailure)
    assert isinstance(failure.error, InputError)
    assert not failure.released
    assert [progress.shard for progress in news] == [0, 1, 2]


def test_outcomes_come_before_the_next_job_starts(make_job) -> None:
    ran = []
    outcomes = LocalExecutor(lambda job, base, news: ran.append(job.shard) or result(job)).train(
        [make_job(0), make_job(1)], print
    )
    next(outcomes)
    assert ran == [0]


def test_threads_are_the_jobs_and_restored_after_success_and_failure(make_job) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        outcomes = LocalExecutor(run_or_fail).train([make_job(0, threads=3), make_job(1, threads=4)], lambda _: None)
        first = next(outcomes)
        assert isinstance(first, ShardResult)
        assert first.tensors["w"][0] == 3
        assert torch.get_num_threads() == 2
        assert isinstance(next(outcomes), ShardFailure)
        assert torch.get_num_threads() == 2
        assert LocalExecutor(run_or_fail).call(torch.get_num_threads, threads=5) == 5
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_base_cannot_be_written_to_and_stays_writable_for_its_owner(make_job) -> None:
    def write(job, base_state, on_progress):
        base_state["w"][0] = 1.0

    base = {"w": np.zeros(2)}
    (failure,) = LocalExecutor(write, base_state=base).train([make_job()], print)
    assert isinstance(failure, ShardFailure)
    assert "read-only" in str(failure.error)
    assert base["w"].flags.writeable
    assert base["w"][0] == 0


def test_a_broken_progress_callback_does_not_break_a_job(make_job) -> None:
    def broken(progress) -> None:
        raise OSError

    (outcome,) = LocalExecutor(run_or_fail).train([make_job()], broken)
    assert isinstance(outcome, ShardResult)


def test_an_interrupt_is_not_a_failure_of_the_job(make_job) -> None:
    def interrupt(job, base_state, on_progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(LocalExecutor(interrupt).train([make_job()], print))


def test_call_runs_here_and_raises_as_is() -> None:
    with make_executor(run_or_fail, address="none") as executor:
        assert isinstance(executor, LocalExecutor)
        assert executor.call(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            executor.call(divmod, 7, 0)
