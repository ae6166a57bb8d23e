"""Forgetting through the library: plans, limits, and removals that were killed on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from privshard.api import forget, train, verify
from privshard.api import removal as removal_module
from privshard.core.errors import BudgetError, InputError
from privshard.store.ledger import Ledger
from privshard.store.workspace import Workspace


@pytest.fixture
def workspace(seeded_workspace):
    return str(seeded_workspace)


def files(workspace):
    return {path: path.read_bytes() for path in Path(workspace).rglob("*") if path.is_file() and path.name != ".lock"}


def actions(result):
    return [step["action"] for step in result["plan"]]


def test_a_plan_changes_no_file(workspace):
    before = files(workspace)
    planned = forget(workspace, subject="person-00", dry_run=True)
    assert (planned["status"], planned["receipt"]) == ("planned", None)
    assert "retrain" in actions(planned)
    assert files(workspace) == before


def test_what_is_no_request_is_refused(workspace):
    with pytest.raises(InputError, match="expected auto, drop or retrain, got 'purge'"):
        forget(workspace, subject="person-00", mode="purge")
    with pytest.raises(InputError, match="got an empty one"):
        forget(workspace, subject="")


def test_nothing_is_forgotten_before_there_is_a_model(make_recipe, tmp_path, workers):
    workers.fail = {0: InputError("no")}
    place = str(tmp_path / "unfinished")
    with pytest.raises(InputError):
        train(make_recipe(), workspace=place)
    for dry_run in (True, False):
        with pytest.raises(InputError, match="its training is not finished"):
            forget(place, subject="person-00", dry_run=dry_run)


def test_an_unknown_subject_costs_no_accounting(workspace, monkeypatch):
    monkeypatch.setattr(removal_module, "_retrain_refused", lambda *_: pytest.fail("the budget was asked"))
    before = files(workspace)
    assert forget(workspace, subject="nobody")["status"] == "unknown_subject"
    assert files(workspace) == before


def test_a_held_out_subject_is_erased_and_the_model_stays(workspace, workers):
    result = forget(workspace, subject="person-07")
    assert (result["status"], actions(result)) == ("done", ["erase", "suppress"])
    assert result["model_after"] == result["model_before"] == "v0001"
    assert workers == []
    assert verify(workspace)["ok"]


def test_auto_retrains_until_the_limit_then_drops(workspace, workers):
    with Workspace.open(workspace) as ws:
        partition = removal_module.partition_of(ws, 2)
    same_shard = [f"person-{n:02d}" for n in range(6) if partition.shard_of(f"person-{n:02d}") == 0]
    first, second = (forget(workspace, subject=subject) for subject in same_shard[:2])
    assert first["receipt"]["guarantee"] == "exact_retrain_seeded"
    assert second["receipt"]["guarantee"] == "exact_drop"
    assert "would make it" in next(step["reason"] for step in second["plan"] if step["action"] == "drop")
    assert workers == [(0, 1)]
    assert verify(workspace)["ok"]


def test_a_retraining_that_the_limit_refuses_changes_nothing(workspace, workers):
    with Workspace.open(workspace) as ws:
        partition = removal_module.partition_of(ws, 2)
    first, second, *_ = [f"person-{n:02d}" for n in range(6) if partition.shard_of(f"person-{n:02d}") == 0]
    forget(workspace, subject=first, mode="retrain")
    before = files(workspace)
    with pytest.raises(BudgetError, match=r"would make it .* Dropping its component is free"):
        forget(workspace, subject=second, mode="retrain")
    assert files(workspace) == before


def test_a_retraining_killed_before_its_commit_is_adopted_and_finished(workspace, workers, killed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", lambda *_, **__: (_ for _ in ()).throw(killed()))
        with pytest.raises(killed):
            forget(workspace, subject="person-00")
    result = forget(workspace, subject="person-00")
    assert len(workers) == 1
    assert (result["status"], result["receipt"]["guarantee"]) == ("done", "exact_retrain_seeded")
    assert result["metrics_after"] is not None
    assert verify(workspace)["ok"]


def test_a_removal_that_can_not_be_finished_by_retraining_is_by_dropping(workspace, workers):
    workers.fail = dict.fromkeys(range(2), RuntimeError("no GPU"))
    with pytest.raises(RuntimeError, match="no GPU"):
        forget(workspace, subject="person-00", mode="retrain")
    assert not verify(workspace)["ok"]
    result = forget(workspace, subject="person-00", mode="drop")
    assert (result["status"], result["receipt"]["guarantee"]) == ("done", "exact_drop")
    assert verify(workspace)["ok"]
    assert forget(workspace, subject="person-00")["status"] == "already_forgotten"
