"""Workspaces whose ledger is a database elsewhere: found again, never mistaken for another's, no password on disk."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.store.ledger import Ledger
from privshard.store.ledger_place import ledger_place, without_password
from privshard.store.objects import ObjectStore
from privshard.store.workspace import Workspace

RECIPE = {"recipe_yaml": "shards: 4\n", "recipe_digest": "d1"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("PRIVSHARD_LEDGER", raising=False)


@pytest.fixture
def url(server):
    return server.database()


def test_a_workspace_on_a_server_is_found_through_its_pointer(tmp_path, url):
    root = tmp_path / "ws"
    with Workspace.create(root, ledger=url, **RECIPE) as made:
        made.ledger.put("base_digest", "b")
    assert not (root / "ledger.db").exists()
    with Workspace.open(root) as again, Workspace.open(root, ledger=url) as named:
        assert again.id == named.id == made.id
        assert again.ledger.get("base_digest") == "b"
        assert again.verify_ledger() == []
    assert Workspace.create(root, **RECIPE).id == made.id


def test_a_password_is_never_written_down(tmp_path, url, monkeypatch):
    root = tmp_path / "ws"
    secret = url.replace("postgres@", "postgres:hunter2@")
    Workspace.create(root, ledger=secret, **RECIPE).close()
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                assert b"hunter2" not in file.read()
    assert "hunter2" not in without_password(secret)
    monkeypatch.setenv("PRIVSHARD_LEDGER", secret)
    assert ledger_place(ObjectStore(root)) == secret
    assert ledger_place(ObjectStore(root), url) == secret  # the password is added from the environment


def test_the_environment_names_the_ledger_of_a_new_workspace_but_never_replaces_a_file(tmp_path, url, monkeypatch):
    Workspace.create(tmp_path / "local", **RECIPE).close()
    monkeypatch.setenv("PRIVSHARD_LEDGER", url)
    with Workspace.open(tmp_path / "local") as local:
        assert "ledger.db" in repr(local.ledger)
    with Workspace.create(tmp_path / "remote", **RECIPE) as remote:
        assert "postgresql" in repr(remote.ledger)
    with pytest.raises(InputError, match=r"its ledger is ledger\.db"):
        Workspace.open(tmp_path / "local", ledger=url)


def test_one_database_serves_one_workspace(tmp_path, url, server):
    Workspace.create(tmp_path / "one", ledger=url, **RECIPE).close()
    with pytest.raises(InputError, match="belongs to another workspace"):
        Workspace.create(tmp_path / "two", ledger=url, **RECIPE)
    with pytest.raises(InputError, match=r"its ledger is postgresql.*got postgresql"):
        Workspace.open(tmp_path / "one", ledger=server.database())
    other = server.database()
    with Workspace.create(tmp_path / "three", ledger=other, **RECIPE):
        (tmp_path / "one" / "ledger.url").write_text(without_password(other))
    with pytest.raises(InputError, match="expected the ledger of workspace"):
        Workspace.open(tmp_path / "one")


def test_creation_that_was_interrupted_is_completed(tmp_path, url, monkeypatch):
    root = tmp_path / "ws"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("privshard.store.creation.create_secrets", stop)
        with pytest.raises(KeyboardInterrupt):
            Workspace.create(root, ledger=url, **RECIPE)
    with pytest.raises(InputError, match="interrupted"):
        Workspace.open(root)
    with Workspace.create(root, **RECIPE) as ws:
        assert ws.verify_ledger() == []


def test_a_server_that_does_not_answer_is_a_missing_resource(tmp_path):
    with pytest.raises(ResourceError, match="no-such-folder") as caught:
        Workspace.create(tmp_path / "ws", ledger="postgresql://ada:hunter2@/db?host=/no-such-folder", **RECIPE)
    assert "hunter2" not in str(caught.value)
    assert "PRIVSHARD_LEDGER" in caught.value.remedy
    assert caught.value.exit_code == 4


def _nothing(_self, path):
    raise VerificationError(f"Expected an object {path}, found none.")


def test_what_is_no_url_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="expected a database URL"):
        Workspace.create(tmp_path / "ws", ledger="postgresql://host:port/db", **RECIPE)
    monkeypatch.setattr(ObjectStore, "read", _nothing)
    with pytest.raises(ResourceError, match="SQLite needs a local disk"):
        ledger_place(ObjectStore("s3://bucket/ws"))


def test_a_newer_ledger_is_refused_on_both_databases(empty_place, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr("privshard.store.journal.SCHEMA_VERSION", 99)
        Ledger.create(empty_place, workspace_id="w1")
    with pytest.raises(InputError, match=r"schema 1 .*got schema 99.*Upgrade"):
        Ledger.open(empty_place)


def test_two_runs_with_one_id_and_different_plans_are_refused_on_both_databases(place, plan):
    with Ledger.open(place) as ledger:
        ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=lambda _: None)
        head = ledger.head
        for other in ({"plan": replace(plan, steps=4)}, {"shard": 1}, {"attempt": 1}):
            with pytest.raises(InputError, match="A run keeps its plan"):
                ledger.reserve("r0", **{"shard": 0, "attempt": 0, "plan": plan, "admit": lambda _: None, **other})
        assert ledger.head == head


def test_a_clock_that_runs_backwards_is_noted_on_both_databases(place, monkeypatch):
    early = "2001-01-01T00:00:00.000000+00:00"
    monkeypatch.setattr("privshard.store.ledger_schema.utc_now", lambda: early)
    with Ledger.open(place) as ledger:
        with pytest.warns(UserWarning, match="clock of this machine"):
            ledger.put("a", 1)
        noted = ledger._journal.entries("fact")[0]
        assert (noted.created, noted.data["clock_read"]) == (ledger.created, early)
        assert ledger.verify_chain() == []


def test_only_a_ledger_that_was_never_used_is_taken_back(place, plan):
    with Ledger.open(place) as ledger:
        ledger.put("recipe_digest", "d")
        ledger.discard_unused()
        assert not Ledger.exists(place)
    with Ledger.create(place, workspace_id="w2") as ledger:
        ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=lambda _: None)
        with pytest.raises(InputError, match="entries: reserve"):
            ledger.discard_unused()
        assert ledger.spent_plans(0) == [plan]
