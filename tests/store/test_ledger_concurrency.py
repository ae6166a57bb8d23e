"""Many writers at once, and writers that die: limits hold, and what was reserved counts."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from privshard.core.errors import BudgetError, PrivshardError
from privshard.store.ledger import Ledger

FORK = multiprocessing.get_context("fork")


def admit_ten(plans):
    if len(plans) > 10:
        raise BudgetError("ten")


@pytest.fixture
def place(tmp_path):
    Ledger.create(tmp_path / "ledger.db", workspace_id="w1").close()
    return tmp_path / "ledger.db"


def _reserve(place, number, plan):
    try:
        with Ledger.open(place) as ledger:
            ledger.reserve(f"r{number}", shard=0, attempt=number, plan=plan, admit=admit_ten)
    except BudgetError:
        return "refused"
    return "reserved"


def test_sixty_threads_get_ten_reservations(place, plan):
    with ThreadPoolExecutor(60) as pool:
        outcomes = list(pool.map(lambda number: _reserve(place, number, plan), range(60)))
    _check_ten(place, outcomes)


def test_sixty_threads_of_one_ledger_get_ten_reservations(place, plan):
    with Ledger.open(place) as ledger, ThreadPoolExecutor(60) as pool:

        def reserve(number):
            try:
                return ledger.reserve(f"r{number}", shard=0, attempt=number, plan=plan, admit=admit_ten).state
            except BudgetError:
                return "refused"

        _check_ten(place, list(pool.map(reserve, range(60))))


def test_sixty_processes_get_ten_reservations(place, plan):
    with FORK.Pool(12, maxtasksperchild=5) as pool:
        outcomes = pool.starmap(_reserve, [(place, number, plan) for number in range(60)], chunksize=1)
    _check_ten(place, outcomes)


def _check_ten(place, outcomes):
    assert sorted(outcomes) == ["refused"] * 50 + ["reserved"] * 10
    with Ledger.open(place) as ledger:
        assert len(ledger.spent_plans(0)) == len(ledger.reservations()) == 10
        assert ledger.verify_chain() == []


def test_sixty_threads_with_one_run_id_reserve_once(place, plan):
    with Ledger.open(place) as ledger, ThreadPoolExecutor(60) as pool:
        same = [
            pool.submit(ledger.reserve, "r0", shard=0, attempt=0, plan=plan, admit=lambda _: None) for _ in range(60)
        ]
        assert {future.result() for future in same} == set(ledger.reservations())
        assert ledger.head[0] == 2


def _reserve_and_die(place, plan):
    Ledger.open(place).reserve("r0", shard=0, attempt=0, plan=plan, admit=lambda _: None)
    os.kill(os.getpid(), signal.SIGKILL)


def _die_inside(place, plan):
    ledger = Ledger.open(place)
    with ledger.transaction():
        ledger.reserve("r1", shard=0, attempt=1, plan=plan, admit=lambda _: None)
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_between_reserve_and_commit_counts(place, plan):
    for target in (_reserve_and_die, _die_inside):
        child = FORK.Process(target=target, args=(place, plan))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    with Ledger.open(place) as ledger:
        assert [(item.run_id, item.state) for item in ledger.reservations()] == [("r0", "reserved")]
        assert ledger.spent_plans(0) == [plan]
        assert ledger.verify_chain() == []
        ledger.reserve("r1", shard=0, attempt=1, plan=plan, admit=lambda _: None)


def _put_beyond_limit(place, outcome):
    ledger = Ledger.open(place)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        ledger.put("big", "x" * 1_000_000)
    except PrivshardError as error:
        outcome.put((error.kind, str(place) in str(error)))


def test_full_disk_is_a_missing_resource_and_changes_nothing(place):
    outcome = FORK.Queue()
    child = FORK.Process(target=_put_beyond_limit, args=(place, outcome))
    child.start()
    assert outcome.get(timeout=60) == ("resource_missing", True)
    child.join()
    with Ledger.open(place) as ledger:
        assert ledger.facts() == {}
        assert ledger.verify_chain() == []
