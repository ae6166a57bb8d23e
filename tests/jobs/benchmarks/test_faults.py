"""Trainings that are shot at end in verified workspaces with the right ledger; the small form of the fault suite."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from jobs.benchmarks import faults
from jobs.benchmarks.small_data import write_small_data
from privshard.core.errors import InputError


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


def test_runs_that_are_over_are_not_made_again(tmp_path, monkeypatch, capsys):
    """A program that is stopped goes on where it was, in a new cluster, and ends with one table of all."""
    asked, fails = [], [3]

    def shoot(numbers, *, on_run, **_):
        for number in numbers:
            if number in fails:
                fails.clear()
                raise KeyboardInterrupt
            asked.append(number)
            on_run(faults.Run(number, 0, faults.VICTIMS[number % 3], 1.0, True, 2.0, 3.0, 0, 0, 0, ()))

    closed = []
    monkeypatch.setattr(faults, "Range", lambda: SimpleNamespace(close=lambda: closed.append(len(asked))))
    monkeypatch.setattr(faults, "shoot_at_all", shoot)
    monkeypatch.setattr(faults, "CLUSTER_RUNS", 2)
    monkeypatch.setenv("PRIVSHARD_KEYS_DIR", str(tmp_path / "keys"))
    command = ["--runs", "5", "--json", str(tmp_path / "faults.json")]
    with pytest.raises(KeyboardInterrupt):
        faults.main(command)
    assert asked == [0, 1, 2]
    assert faults.main(command) == 0
    assert asked == [0, 1, 2, 3, 4]
    assert closed == [2, 3, 5]
    assert capsys.readouterr().out.count("| actor | 2 | 2 | 2 |") == 1
    with pytest.raises(InputError, match="--json another file"):
        faults.main([*command, "--seed", "1"])


def test_the_table_counts_by_victim():
    run = faults.Run(0, 0, "actor", 1.0, True, 2.0, 3.4, 1, 0, 0, ())
    rows = faults.table([run, dataclasses.replace(run, number=3, problems=("x",), charged=1)]).splitlines()
    assert rows[-1] == "| actor | 2 | 2 | 1 | 2 | 0 | 1 | 3 |"
    assert len(rows) == 3
