"""Trainings that are shot at end in verified workspaces with the right ledger; the small form of the fault suite."""

from __future__ import annotations

import dataclasses

import pytest

from jobs.benchmarks import faults
from jobs.benchmarks.small_data import write_small_data


def shoot(num_runs: int, tmp_path, monkeypatch, *, stand_in_s: float | None = 0.5) -> list[faults.Run]:
    monkeypatch.setenv("PRIVSHARD_KEYS_DIR", str(tmp_path / "keys"))
    write_small_data(tmp_path / "people.parquet")
    where = faults.Range()
    try:
        return faults.shoot_at_all(range(num_runs), base_seed=9, where=where, folder=tmp_path, stand_in_s=stand_in_s)
    finally:
        where.close()


def check(runs: list[faults.Run]) -> None:
    print(faults.table(runs))
    assert [run.problems for run in runs] == [()] * len(runs)
    assert all(run.elapsed_s < 2 * faults.DEADLINE_S for run in runs)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_an_actor_a_node_and_a_controller_are_killed(tmp_path, monkeypatch):
    runs = shoot(3, tmp_path, monkeypatch)
    assert [run.victim for run in runs] == list(faults.VICTIMS)
    check(runs)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_sixty_trainings_are_shot_at(tmp_path, monkeypatch):
    check(shoot(60, tmp_path, monkeypatch))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_trainings_of_the_real_model_are_shot_at(tmp_path, monkeypatch):
    check(shoot(3, tmp_path, monkeypatch, stand_in_s=None))


def test_the_table_counts_by_victim():
    run = faults.Run(0, 0, "actor", 1.0, True, 2.0, 3.4, 1, 0, 0, ())
    rows = faults.table([run, dataclasses.replace(run, number=3, problems=("x",), charged=1)]).splitlines()
    assert rows[-1] == "| actor | 2 | 2 | 1 | 2 | 0 | 1 | 3 |"
    assert len(rows) == 3
