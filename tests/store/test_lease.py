"""The lease: one holder at a time across machines; a silent one loses it, and can't do harm from then on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from privshard.core.errors import InputError, ResourceError
from privshard.store.journal import Journal
from privshard.store.ledger import Ledger
from privshard.store.lock import BusyError
from privshard.store.server import LedgerInterruptedError
from privshard.store.views import NewRun

HOLDER = """
import sys, time
from privshard.store.ledger import Ledger
with Ledger.open(sys.argv[1]) as ledger, ledger.hold_lease(root="ws") as lease:
    print("held", lease.generation, flush=True)
    sys.stdin.readline()
    try:
        ledger.put("written by", "the first")
        print("wrote", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def url(server):
    place = server.database()
    Ledger.create(place, workspace_id="w1").close()
    return place


@pytest.fixture
def ledger(url):
    with Ledger.open(url) as opened:
        yield opened


@pytest.fixture
def start(url, monkeypatch):
    """(lease in seconds) -> a process that holds the lease, and writes when it is told to."""
    started = []

    def begin(lease_s):
        environment = {**os.environ, "PRIVSHARD_LEASE_S": str(lease_s)}
        command = [sys.executable, "-c", HOLDER, url, "--subject", "ada@example.org"]
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held 1\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def take(ledger, *, wait_s=120):
    """Hold the lease as soon as it is free."""
    deadline = time.monotonic() + wait_s
    while True:
        held = ledger.hold_lease(root="ws")
        try:
            return held, held.__enter__()
        except BusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def test_the_second_is_told_who_holds_and_until_when(ledger, start):
    process = start(3600)
    with pytest.raises(BusyError, match=rf"workspace ws alone, but process {process.pid} on .*since 20") as caught:
        take(ledger, wait_s=0)
    assert "If it died, its lease ends in 3600 s (PRIVSHARD_LEASE_S)" in caught.value.message
    assert "ada@example.org" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_holder_that_lets_go_is_followed_at_once(ledger):
    for generation in (1, 2):
        with ledger.hold_lease(root="ws") as lease:
            assert lease.generation == generation
            ledger.put("by", generation)
    with pytest.raises(KeyError), ledger.hold_lease(root="ws"):
        raise KeyError
    with ledger.hold_lease(root="ws") as lease:
        assert lease.generation == 4


def test_a_killed_holder_is_followed_after_its_lease(ledger, start):
    process = start(3600)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for passed_s in (3000, 601):  # the database's clock is the one that counts, so its row is made older
        with pytest.raises(BusyError):
            take(ledger, wait_s=0)
        change = f"UPDATE lease SET renewed = renewed - {passed_s}"
        ledger._journal.run(lambda connection, change=change: connection.exec_driver_sql(change))
    held, lease = take(ledger, wait_s=0)
    assert lease.generation == 2
    held.__exit__(None, None, None)


@pytest.mark.slow
def test_a_holder_at_work_keeps_its_lease_for_longer_than_it_lasts(ledger, start):
    start(3)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        with pytest.raises(BusyError):
            take(ledger, wait_s=0)
        time.sleep(0.2)


def test_a_stalled_holder_writes_nothing_after_another_took_over(ledger, start):
    process = start(1)
    os.kill(process.pid, signal.SIGSTOP)
    held, lease = take(ledger)
    ledger.put("written by", "the second")
    os.kill(process.pid, signal.SIGCONT)
    process.stdin.write("go\n")
    said = process.stdout.readline()
    assert said.startswith(
        "ResourceError This process lost the workspace: it was silent for longer than its lease of 1 s"
    )
    assert f"process {os.getpid()} on" in said
    held.__exit__(None, None, None)
    assert ledger.get("written by") == "the second"
    assert lease.generation == 2


def test_a_stalled_holder_lets_no_result_out_after_another_took_over(ledger, url, plan):
    """Both know the same reservation; the one that holds the workspace is the one whose result leaves its worker."""
    taken = [NewRun("r0", 0, 0)]
    with Ledger.open(url) as stalled, stalled.hold_lease(root="ws") as lease:
        stalled.reserve_all(taken, plan=plan, admit=lambda _: None, marked=True)
        lease._stop.set()
        ledger._journal.run(lambda connection: connection.exec_driver_sql("UPDATE lease SET renewed = 0"))
        held, _ = take(ledger)
        assert not ledger.reserve_all(taken, plan=plan, admit=lambda _: pytest.fail("charged twice"))[0].released
        for change in (
            lambda: stalled.release("r0"),
            lambda: stalled.void("r0", reason="it was stopped"),
            lambda: stalled.reserve_all([NewRun("r1", 1, 0)], plan=plan, admit=lambda _: None),
        ):
            with pytest.raises(ResourceError, match="This process lost the workspace"):
                change()
        ledger.release("r0")
        assert [(run.run_id, run.state, run.released) for run in ledger.reservations()] == [("r0", "reserved", True)]
        held.__exit__(None, None, None)


@pytest.mark.parametrize("verb", ["reserve_all", "release"])
def test_a_database_that_restarts_in_the_middle_is_waited_for(ledger, server, plan, monkeypatch, verb):
    real, restarts = Journal.append, []

    def append(journal, kind, **content):
        if kind == verb.removesuffix("_all") and not restarts:
            restarts.append(server.restart())
        return real(journal, kind, **content)

    monkeypatch.setattr(Journal, "append", append)
    with ledger.hold_lease(root="ws"), ledger.kept_open():
        ledger.reserve_all([NewRun("r0", 0, 0)], plan=plan, admit=lambda _: None, marked=True)
        assert not ledger.reservations()[0].released
        ledger.release("r0")
        assert restarts
        assert [(run.run_id, run.released) for run in ledger.reservations()] == [("r0", True)]
        with pytest.raises(InputError, match="which is released"):
            ledger.release("r0")


def test_a_stalled_holder_that_nobody_followed_goes_on(ledger, start):
    process = start(0.5)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGCONT)
    process.stdin.write("go\n")
    assert process.stdout.readline() == "wrote\n"


def test_storage_is_not_written_while_the_lease_can_not_be_shown_to_hold(ledger, server, monkeypatch):
    monkeypatch.setenv("PRIVSHARD_LEASE_S", "0.3")
    monkeypatch.setenv("PRIVSHARD_LEDGER_TIMEOUT_S", "2")
    with ledger.hold_lease(root="ws") as lease:
        lease.require()
        server.control("-m", "immediate", "stop")
        try:
            with pytest.raises(LedgerInterruptedError):
                [(lease.require(), time.sleep(0.05)) for _ in range(200)]
        finally:
            server.control("start")
        lease.require()


def test_a_restart_of_the_database_takes_nobodys_lease(ledger, server):
    with ledger.hold_lease(root="ws") as lease:
        server.restart()
        ledger.put("a", 1)
        lease.renew()
        with Ledger.open(ledger._journal._engine.url.render_as_string()) as other, pytest.raises(BusyError):
            take(other, wait_s=0)


def test_the_answer_to_a_take_may_be_lost(ledger):
    from privshard.store.lease import Lease

    lease = Lease(ledger._journal, root="ws")
    lease.take()
    lease.take()
    assert lease.generation == 1
    lease.release()


def test_outside_of_a_hold_nothing_is_fenced(ledger):
    with ledger.hold_lease(root="ws"):
        pass
    ledger.put("a", 1)
    assert ledger.get("a") == 1
    with pytest.raises(ResourceError), ledger.hold_lease(root="ws"), ledger.hold_lease(root="ws"):
        pytest.fail("held twice")
