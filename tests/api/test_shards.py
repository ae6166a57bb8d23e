"""Reserve, run, keep, commit: what counts as spent, and which files count at all."""

from __future__ import annotations

import pytest

from privshard.api import shards
from privshard.api.setup import Setup, flags_of, stored_recipe
from privshard.core.errors import BudgetError, InputError, ResourceError
from privshard.core.jobs import ShardFailure
from privshard.store.workspace import Workspace


@pytest.fixture
def trained(seeded_workspace):
    """A workspace with one committed component a shard, open."""
    with Workspace.open(seeded_workspace) as ws:
        yield ws, Setup.load(ws), flags_of(stored_recipe(ws))


class Trainer:
    """Ends every job as it is told."""

    def __init__(self, *outcomes):
        self.outcomes, self.jobs, self.stopped = outcomes, [], False

    def train(self, jobs, on_progress, *, before_release=lambda _: None):
        self.jobs = list(jobs)
        for job, outcome in zip(jobs, self.outcomes, strict=False):
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome(job)

    def stop(self):
        self.stopped = True


def retrain(trained, trainer, which=(0, 1)):
    ws, setup, flags = trained
    return shards.train_shards(
        ws,
        setup,
        shards=which,
        flags=flags,
        trainer=trainer,
        stop=trainer.stop,
        on_progress=lambda _: None,
    )


def failed(released):
    return lambda job: ShardFailure(job.run_id, job.shard, ResourceError("Gone."), released=released)


def states(ws):
    return {(run.shard, run.attempt): run.state for run in ws.ledger.reservations() if run.attempt}


def test_a_failure_that_may_have_released_something_stays_spent(trained):
    with pytest.raises(ResourceError, match=r"Shard 0: Gone\. \(1 other"):
        retrain(trained, Trainer(failed(True), failed(False)))
    assert states(trained[0]) == {(0, 1): "reserved", (1, 1): "voided"}


def test_a_limit_refuses_before_any_worker_starts(trained):
    with pytest.raises(ResourceError):
        retrain(trained, Trainer(failed(True)), which=[0])
    trainer = Trainer()
    with pytest.raises(BudgetError, match="2 training"):
        retrain(trained, trainer, which=[1, 0])
    assert trainer.jobs == []
    assert states(trained[0]) == {(0, 1): "reserved"}


class Died(BaseException):
    """The controller ends here, without a chance to void anything."""


def die_after(trained, monkeypatch, *, released):
    """A controller that dies while shard 1 is trained: what it would do afterwards is not done."""

    class Dying(Trainer):
        def train(self, jobs, on_progress, *, before_release=lambda _: None):
            if released:
                before_release(jobs[0].run_id)
            yield from ()
            raise Died

    with monkeypatch.context() as dead:
        dead.setattr(type(trained[0].ledger), "void", lambda *_, **__: None)
        with pytest.raises(Died):
            retrain(trained, Dying(), which=[1])


def test_what_a_dead_controller_provably_kept_in_is_taken_up_under_the_same_reservation(trained, monkeypatch, workers):
    from privshard.api.worker import run_job

    ws = trained[0]
    die_after(trained, monkeypatch, released=False)
    assert states(ws) == {(1, 1): "reserved"}
    trainer = Trainer(lambda job: run_job(job, None, lambda _: None))
    retrain(trained, trainer, which=[1])
    assert [job.attempt for job in trainer.jobs] == [1]
    assert states(ws) == {(1, 1): "committed"}


def test_what_it_may_have_let_out_stays_spent_and_a_new_attempt_is_charged(trained, monkeypatch):
    ws = trained[0]
    die_after(trained, monkeypatch, released=True)
    assert states(ws) == {(1, 1): "reserved"}
    with pytest.raises(BudgetError):  # one retraining was planned, and it is spent
        retrain(trained, Trainer(failed(False)), which=[1])
    assert states(ws) == {(1, 1): "reserved"}
    with pytest.raises(InputError, match="released"):
        ws.ledger.void("shard-001-attempt-001", reason="it is not so")
    with pytest.raises(InputError, match="released"):  # a controller that was taken for dead lets nothing out
        ws.ledger.release("shard-001-attempt-001")


def test_an_error_of_the_trainer_stops_all_and_gives_back(trained):
    trainer = Trainer(failed(False), RuntimeError("the cluster is gone"))
    with pytest.raises(RuntimeError, match="the cluster is gone"):
        retrain(trained, trainer)
    assert trainer.stopped
    assert set(states(trained[0]).values()) == {"voided"}


def test_the_latest_committed_attempt_is_a_shards_component(trained, workers):
    from privshard.api.worker import run_job

    ws = trained[0]
    before = shards.committed(ws)
    results = retrain(trained, Trainer(lambda job: run_job(job, None, lambda _: None)), which=[1])
    after = shards.committed(ws)
    assert (after[0], set(results)) == (before[0], {1})
    assert after[1] != before[1]
    record = ws.load_record(after[1])
    assert (record.attempt, record.secure_randomness, record.spend.epsilon) == (1, False, trained[1].spend(1).epsilon)


def test_adopting_deletes_files_of_no_run_and_leaves_the_others(trained):
    ws = trained[0]
    kept = ws.component_ids()
    ws.objects.write("components/" + "f" * 64 + ".safetensors", b"half")
    ws.objects.write("private/" + "e" * 64 + ".json", b"{}")
    shards.adopt(ws)
    assert ws.component_ids() == kept
    shards.adopt(ws)
    assert ws.component_ids() == kept
