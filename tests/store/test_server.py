"""A PostgreSQL server that is away, silent, restarted or refuses: deadlines, reconnection, and errors for people."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest
from postgres import GUARDED_USER
from tcp_proxy import proxy_to

from privshard.core.errors import InputError, ResourceError
from privshard.store.ledger import Ledger
from privshard.store.server import LedgerInterruptedError

COMMIT = b"COMMIT\0"  # as it is sent; "BEGIN ISOLATION LEVEL READ COMMITTED" is something else


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("PRIVSHARD_LEDGER", raising=False)


@pytest.fixture
def proxy(server):
    with proxy_to(server.socket()) as running:
        yield running


@pytest.fixture
def url(server, proxy):
    """A database behind the proxy."""
    name = server.database().split("/")[3].split("?")[0]
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}?sslmode=disable&gssencmode=disable"


@pytest.fixture
def ledger(url):
    with Ledger.create(url, workspace_id="w1") as made:
        yield made


def sql(server, url, text):
    name = url.split("/")[3].split("?")[0]
    command = [server.binaries / "psql", "-h", server.folder, "-U", "postgres", "-d", name, "-qAtc", text]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=server.folder).stdout.strip()


def guard(server, url, properties):
    """Let there be a user who has to give a password."""
    there = sql(server, url, f"SELECT count(*) FROM pg_roles WHERE rolname = '{GUARDED_USER}'") == "1"
    sql(server, url, f"{'ALTER' if there else 'CREATE'} ROLE {GUARDED_USER} {properties}")


def test_a_lost_connection_is_opened_again_for_reads_and_for_verbs(ledger, proxy, plan):
    proxy.cut()
    assert ledger.get("a") is None
    for sign in (b"INSERT INTO entries", COMMIT):
        proxy.cut_when, proxy.after_passing = (lambda said, sign=sign: sign in said), False
        ledger.put("a", repr(sign))
        assert proxy.cut_when is None
        assert ledger.get("a") == repr(sign)
    assert [entry.kind for entry in ledger._journal.entries()] == ["workspace", "fact", "fact"]
    assert ledger.verify_chain() == []


def test_a_commit_whose_answer_is_lost_is_not_made_twice(ledger, proxy):
    from privshard.core.model import Composition

    proxy.cut_when, proxy.after_passing = (lambda said: COMMIT in said), True
    assert ledger.add_model(Composition.uniform("b", ["c"]), reason="train") == 1
    assert proxy.cut_when is None
    assert [model.version for model in ledger.models()] == [1]


def test_a_transaction_of_several_verbs_is_never_half_there(ledger, proxy):
    proxy.cut_when, proxy.after_passing = (lambda said: COMMIT in said), False

    def both():
        with ledger.transaction():
            ledger.put("a", 1)
            ledger.put("b", 2)

    with pytest.raises(LedgerInterruptedError, match="does not answer"):
        both()
    assert ledger.facts() == {}
    both()
    assert ledger.facts() == {"a": 1, "b": 2}


def test_a_server_that_restarts_in_the_middle_is_waited_for(server):
    with Ledger.create(server.database(), workspace_id="w1") as ledger:
        ledger.put("a", 1)
        server.control("-m", "immediate", "stop")
        starter = threading.Timer(1.0, lambda: server.control("start"))
        starter.start()
        try:
            ledger.put("b", 2)
        finally:
            starter.join()
        assert ledger.facts() == {"a": 1, "b": 2}
        assert ledger.verify_chain() == []


def test_a_server_that_stays_away_is_given_up(ledger, proxy, monkeypatch):
    monkeypatch.setenv("PRIVSHARD_LEDGER_TIMEOUT_S", "0.5")
    proxy.close()
    with pytest.raises(ResourceError, match=r"server does not answer.*Check that the server runs"):
        ledger.put("a", 1)


def test_a_silent_network_has_a_deadline(ledger, proxy, monkeypatch):
    def fall_silent():
        with ledger.transaction():
            proxy.silent = True
            ledger.put("a", 1)

    with monkeypatch.context() as short:
        short.setattr("privshard.store.server._GRACE_S", 0)
        short.setenv("PRIVSHARD_LEDGER_TIMEOUT_S", "1")
        with pytest.raises(ResourceError, match="no answer within 1 s"):
            fall_silent()
    proxy.silent = False
    assert ledger.facts() == {}


def test_a_lock_that_somebody_keeps_has_a_deadline(ledger, server, url, monkeypatch):
    monkeypatch.setenv("PRIVSHARD_LEDGER_TIMEOUT_S", "1")
    name = url.split("/")[3].split("?")[0]
    keep = "BEGIN; LOCK TABLE entries IN EXCLUSIVE MODE; SELECT 1; SELECT pg_sleep(60)"
    command = [server.binaries / "psql", "-h", server.folder, "-U", "postgres", "-d", name, "-c", keep]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=server.folder) as other:
        while sql(server, url, "SELECT count(*) FROM pg_locks WHERE mode = 'ExclusiveLock' AND relation > 0") == "0":
            time.sleep(0.05)
        with pytest.raises(ResourceError, match=r"another transaction has kept it.*PRIVSHARD_LEDGER_TIMEOUT_S"):
            ledger.put("a", 1)
        sql(server, url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN%sleep%'")
        other.kill()


def test_every_refusal_has_its_remedy_and_no_password(server, url, monkeypatch):
    place = f"/x?host={server.folder}"
    guard(server, url, "NOSUPERUSER LOGIN PASSWORD 'hunter3'")
    database = server.database().split("@")[1]
    sql(server, f"postgresql://x@{database}", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    for address, message, remedy in (
        (f"{GUARDED_USER}:hunter2@{database}", "refuses the login", "pgpass"),
        (f"{GUARDED_USER}@{database}", "refuses the login", "PRIVSHARD_LEDGER"),
        (f"nobody:hunter2@{database}", "doesn't know the user", "pgpass"),
        (f"postgres:hunter2@{place}", "has no such database", "createdb"),
        ("ada:hunter2@no-such-host.invalid/x", "no address|does not answer", "host|machine reaches it"),
        ("ada:hunter2@127.0.0.1:1/x", "does not answer.*refused", "Check that the server runs"),
        ("ada@127.0.0.1:1/x?password=hunter2&sslpassword=hunter2", "does not answer", "Check that the server runs"),
        (f"{GUARDED_USER}:hunter3@{database}", "lacks a right", "GRANT CREATE"),
    ):
        with pytest.raises(ResourceError, match=message) as caught:
            Ledger.create(f"postgresql://{address}", workspace_id="w1")
        assert caught.value.exit_code == 4
        assert any(word in caught.value.remedy for word in remedy.split("|"))
        chain, error = "", caught.value
        while error is not None:
            chain, error = chain + repr(error) + str(error), error.__cause__ or error.__context__
        assert "hunter2" not in chain
        assert "hunter3" not in chain


def test_deadlines_are_numbers(monkeypatch, server):
    for text in ("soon", "-1", "0", "nan"):
        monkeypatch.setenv("PRIVSHARD_LEDGER_TIMEOUT_S", text)
        with pytest.raises(InputError, match=f"PRIVSHARD_LEDGER_TIMEOUT_S: expected a number.*{text}"):
            Ledger.create(server.database(), workspace_id="w1")


def test_a_user_with_the_right_password_is_let_in_and_it_is_not_shown(server, url):
    guard(server, url, "SUPERUSER LOGIN PASSWORD 'good'")
    address = server.database().replace("postgres@", f"{GUARDED_USER}:good@")
    with Ledger.create(address, workspace_id="w1") as ledger:
        assert f"{GUARDED_USER}:***@" in repr(ledger)
