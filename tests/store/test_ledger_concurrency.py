"""Many writers at once, and writers that die: limits hold, and what was reserved counts."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from privshard.core.errors import BudgetError, InputError, PrivshardError
from privshard.core.privacy import MechanismPlan
from privshard.privacy.budget import admit, admit_workspace
from privshard.privacy.plan import spend_of
from privshard.store.ledger import Ledger

FORK = multiprocessing.get_context("fork")


PLAN = MechanismPlan("example", 1.0, 1, 1.0, 40.0, 10.0, 1e-5, "rdp")
LIMIT = spend_of([PLAN] * 50).epsilon


def admit_ten(plans):
    if len(plans) > 10:
        raise BudgetError("ten")


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


def _check_ten(place, outcomes):
    assert sorted(outcomes) == ["refused"] * 50 + ["reserved"] * 10
    with Ledger.open(place) as ledger:
        assert len(ledger.spent_plans(0)) == len(ledger.reservations()) == 10
        assert ledger.verify_chain() == []


def _reserve_at_the_signal(place, runs, workspace_limit, gate, outcomes):
    """Reserve all of `runs`, (number, shard), at once when the gate opens."""

    def reserve(number, shard):
        gate.wait()
        try:
            with Ledger.open(place) as ledger:
                ledger.reserve(
                    f"r{number}",
                    shard=shard,
                    attempt=number,
                    plan=PLAN,
                    admit=admit(LIMIT),
                    admit_workspace=admit_workspace(workspace_limit),
                )
            return "reserved"
        except BudgetError as error:
            return f"refused {error.exit_code}"
        except BaseException as error:  # whatever it was, the parent has to hear of it
            return repr(error)

    with ThreadPoolExecutor(len(runs)) as pool:
        outcomes.put(list(pool.map(reserve, *zip(*runs, strict=True))))


def _race(place, shards, *, processes, workspace_limit=None):
    """Reservations of `shards`, all at once, spread over that many processes: how each ended, sorted."""
    for times in range(1, 52):
        spend_of([PLAN] * times)  # the accountant's answers are remembered, and children inherit that
    gate, outcomes = FORK.Event(), FORK.Queue()
    runs = list(enumerate(shards))
    children = [
        FORK.Process(
            target=_reserve_at_the_signal, args=(place, runs[first::processes], workspace_limit, gate, outcomes)
        )
        for first in range(processes)
    ]
    for child in children:
        child.start()
    gate.set()
    ended = [outcome for _ in children for outcome in outcomes.get(timeout=200)]
    for child in children:
        child.join(60)
    return sorted(ended)


@pytest.mark.parametrize("processes", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_of_two_hundred_reservations_at_once_exactly_the_fifty_that_fit_succeed(place, processes):
    ended = _race(place, [0] * 200, processes=processes)
    assert ended == ["refused 3"] * 150 + ["reserved"] * 50
    with Ledger.open(place) as ledger:
        spent = spend_of(ledger.spent_plans(0)).epsilon
        assert len(ledger.reservations()) == 50
        assert spent is not None
        assert spent <= LIMIT < (spend_of([PLAN] * 51).epsilon or 0)
        assert ledger.verify_chain() == []
        assert ledger.head[0] == 51


def test_a_limit_of_the_workspace_holds_for_every_shard(place):
    """Ten reservations on each of four shards: the shards would admit 50 each, the workspace three."""
    limit = spend_of([PLAN] * 3).epsilon
    ended = _race(place, [number % 4 for number in range(40)], processes=5, workspace_limit=limit)
    assert ended == ["refused 3"] * 28 + ["reserved"] * 12
    with Ledger.open(place) as ledger:
        assert {shard: len(plans) for shard, plans in ledger.spent_by_shard().items()} == dict.fromkeys(range(4), 3)
        assert ledger.verify_chain() == []


def _create(place, number, gate, outcomes):
    def create(_):
        gate.wait()
        try:
            Ledger.create(place, workspace_id=f"w{number}")
            return "made"
        except InputError:
            return "found one"
        except BaseException as error:
            return repr(error)

    with ThreadPoolExecutor(6) as pool:
        outcomes.put(list(pool.map(create, range(6))))


def test_of_many_creations_one_succeeds(empty_place):
    gate, outcomes = FORK.Event(), FORK.Queue()
    children = [FORK.Process(target=_create, args=(empty_place, number, gate, outcomes)) for number in range(6)]
    for child in children:
        child.start()
    gate.set()
    ended = sorted(outcome for _ in children for outcome in outcomes.get(timeout=120))
    for child in children:
        child.join(60)
    assert ended == ["found one"] * 35 + ["made"]
    with Ledger.open(empty_place) as ledger:
        assert ledger.head[0] == 1


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


@pytest.mark.parametrize("empty_place", ["sqlite"], indirect=True)
def test_full_disk_is_a_missing_resource_and_changes_nothing(place):
    outcome = FORK.Queue()
    child = FORK.Process(target=_put_beyond_limit, args=(place, outcome))
    child.start()
    assert outcome.get(timeout=60) == ("resource_missing", True)
    child.join()
    with Ledger.open(place) as ledger:
        assert ledger.facts() == {}
        assert ledger.verify_chain() == []
