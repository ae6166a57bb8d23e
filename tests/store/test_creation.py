"""Creation: whoever comes at the same moment is told who is at it, and nobody sees or removes half of a workspace."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from privshard.core.errors import InputError, ResourceError
from privshard.store import creation
from privshard.store.creation import created
from privshard.store.journal import Journal
from privshard.store.layout import BESIDE_LEDGER
from privshard.store.ledger import Ledger
from privshard.store.lock import LOCK_NAME, BusyError, hold
from privshard.store.objects import ObjectStore
from privshard.store.workspace import Workspace

RECIPE = {"recipe_yaml": "shards: 4\n", "recipe_digest": "d1"}
FORK = multiprocessing.get_context("fork")


class PlannedError(Exception):
    """The recipe turns out to be wrong."""


@pytest.fixture(autouse=True)
def keys_dir(tmp_path, monkeypatch):
    monkeypatch.delenv("PRIVSHARD_KEYS", raising=False)
    monkeypatch.delenv("PRIVSHARD_LEDGER", raising=False)
    monkeypatch.setenv("PRIVSHARD_KEYS_DIR", str(tmp_path / "keys"))
    return tmp_path / "keys"


def begun(workspace):
    return workspace.ledger.get("ingested") is not None


def drive(root, *, fails=False, ledger=None):
    """What becomes of one driver: "worked", "busy", "failed", or the error that nobody should see."""
    try:
        with created(root, **RECIPE, is_begun=begun, ledger=ledger) as workspace:
            workspace.ledger.put("base_digest", "b")
            if fails:
                raise PlannedError
            workspace.ledger.put("ingested", {"rows": "private"})
            assert workspace.verify_ledger() == []
            workspace.close()
    except BusyError as error:
        return "busy" if f"process {os.getpid()} on" in error.message or os.getpid() != MAIN else f"nobody: {error}"
    except PlannedError:
        return "failed"
    except BaseException as error:
        return repr(error)
    return "worked"


MAIN = os.getpid()


def check(root, outcomes):
    """Nobody got anything but a workspace, a holder's name or its own failure; what is left is whole."""
    assert set(outcomes) <= {"worked", "busy", "failed"}, outcomes
    assert outcomes != ["busy", "busy"]
    if "worked" in outcomes:
        with Workspace.open(root) as workspace:
            assert workspace.verify_ledger() == []
            assert begun(workspace)
    else:
        assert not os.path.exists(root)


def race_threads(roots, *, ledgers=None):
    """Two drivers for each place; in every other place one of them fails."""
    for number, root in enumerate(roots):
        gate = threading.Barrier(2)

        def run(fails, root=root, number=number, gate=gate):
            gate.wait(120)
            return drive(root, fails=fails, ledger=ledgers[number] if ledgers else None)

        with ThreadPoolExecutor(2) as pool:
            check(root, list(pool.map(run, (bool(number % 2), False))))


def race_processes(roots):
    gate, queues = FORK.Barrier(2), [FORK.Queue(), FORK.Queue()]

    def run(queue, fail):
        found = []
        for number, root in enumerate(roots):
            gate.wait(120)
            found.append(drive(root, fails=fail and bool(number % 2)))
        queue.put(found)

    children = [FORK.Process(target=run, args=(queue, fail)) for queue, fail in zip(queues, (True, False), strict=True)]
    for child in children:
        child.start()
    ended = [queue.get(timeout=600) for queue in queues]
    for child in children:
        child.join(60)
    for root, outcomes in zip(roots, zip(*ended, strict=True), strict=True):
        check(root, list(outcomes))


def places(tmp_path, number):
    return [str(tmp_path / f"place-{index}") for index in range(number)]


@pytest.mark.parametrize("race", [race_threads, race_processes])
def test_two_that_start_at_once_never_meet_halfway(tmp_path, race):
    race(places(tmp_path, 6))


@pytest.mark.slow
@pytest.mark.parametrize("race", [race_threads, race_processes])
def test_two_that_start_at_once_never_meet_halfway_under_load(tmp_path, race):
    busy = [FORK.Process(target=_spin, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for process in busy:
        process.start()
    try:
        race(places(tmp_path, 300))
    finally:
        for process in busy:
            process.kill()


def _spin():
    while True:
        pass


def test_nor_do_they_on_a_server(tmp_path, server):
    race_threads(places(tmp_path, 2), ledgers=[server.database() for _ in range(2)])


def test_two_workspaces_that_want_one_database_are_told_apart(tmp_path, server):
    """The second comes when the first has claimed the database and not yet made its ledger."""
    url, second = server.database(), []
    real = Ledger.make

    def make(book, *, workspace_id):
        if not second:
            second.append(drive(str(tmp_path / "two"), ledger=url))
        return real(book, workspace_id=workspace_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "make", make)
        assert drive(str(tmp_path / "one"), ledger=url) == "worked"
    assert second == ["busy"]
    with pytest.raises(InputError, match="belongs to another workspace"):
        Workspace.create(tmp_path / "two", **RECIPE, ledger=url)
    assert not (tmp_path / "two").exists()


def test_who_reads_meanwhile_sees_a_whole_ledger_or_none(tmp_path):
    root, over, seen = tmp_path / "place", threading.Event(), Counter()

    def read():
        while not over.is_set():
            try:
                with Workspace.open(root) as workspace:
                    seen[workspace.ledger.verify_chain() == []] += 1
            except Exception as error:
                seen[type(error).__name__] += 1

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            assert drive(root, fails=True) == "failed"
    finally:
        over.set()
        reader.join()
    assert set(seen) <= {True, "InputError", "ResourceError"}
    assert not root.exists() or {child.name for child in root.iterdir()} <= set(BESIDE_LEDGER)
    assert drive(root, fails=True) == "failed"
    assert not root.exists()
    assert drive(root) == "worked"


def test_a_ledger_file_appears_whole(tmp_path, monkeypatch):
    """At no moment is there a file by its name that a reader could take for a ledger, or for a broken one."""
    path, seen, real = tmp_path / "ledger.db", [], Journal.append

    def append(journal, *args, **kwargs):
        seen.append(path.exists())
        return real(journal, *args, **kwargs)

    monkeypatch.setattr(Journal, "append", append)
    Ledger.create(path, workspace_id="w1").close()
    assert seen == [False]
    assert sorted(child.name for child in tmp_path.iterdir()) == ["ledger.db"]
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_connection_makes_no_file(tmp_path):
    path = tmp_path / "ledger.db"
    with Ledger.create(path, workspace_id="w1") as ledger:
        path.unlink()
        with pytest.raises(ResourceError, match="unable to open"):
            ledger.put("a", 1)
        assert not ledger.is_made
    assert not path.exists()


def test_the_lock_of_a_folder_that_was_taken_away_counts_for_nothing(tmp_path, monkeypatch):
    """Somebody opened the old lock file just before its holder took it away: two would think that they hold."""
    import fcntl

    place, real = tmp_path / "place", fcntl.flock
    place.mkdir()

    def flock(descriptor, operation):
        if operation & fcntl.LOCK_EX and (place / LOCK_NAME).exists() and not taken:
            taken.append((place / LOCK_NAME).unlink())
        return real(descriptor, operation)

    taken: list[None] = []
    monkeypatch.setattr(fcntl, "flock", flock)
    with hold(place):
        assert len(taken) == 1
        assert (place / LOCK_NAME).exists()
        with pytest.raises(BusyError, match=f"process {os.getpid()}"), hold(place):
            pytest.fail("held twice")


def test_a_failure_takes_back_only_what_it_made(tmp_path, keys_dir):
    """Also where other things lay in the place, and where the recipe is another one."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "thesis.txt").write_text("all of it")
    assert drive(place, fails=True) == "failed"
    assert (place / "thesis.txt").read_text() == "all of it"
    with Workspace.open(place) as workspace:
        assert workspace.verify_ledger() == []
    with pytest.raises(InputError, match="recipe_digest d1, got d2"):
        Workspace.create(place, recipe_yaml="shards: 5\n", recipe_digest="d2")
    assert len(list(keys_dir.iterdir())) == 1
    assert drive(tmp_path / "new", fails=True) == "failed"
    assert not (tmp_path / "new").exists()
    assert len(list(keys_dir.iterdir())) == 1


def test_a_bucket_with_other_things_in_it_is_never_emptied(buckets, server):
    uri = buckets.uri()
    ObjectStore(uri).write("thesis.txt", b"all of it")
    assert drive(uri, fails=True, ledger=server.database()) == "failed"
    assert ObjectStore(uri).read("thesis.txt") == b"all of it"


def test_rows_that_were_named_are_taken_back_with_their_names(buckets, server):
    """After a failure in the middle of the rows the database is as empty as the bucket: the next one starts afresh."""
    uri, url = buckets.uri(), server.database()
    with suppress(PlannedError), created(uri, **RECIPE, is_begun=begun, ledger=url) as workspace:
        workspace.objects.write("data/shard=000/part-0.parquet", b"rows")
        assert len(ObjectStore(uri).list("data")) == 1
        raise PlannedError
    assert ObjectStore(uri).list() == []
    assert not Ledger.exists(url)
    with Ledger.at(url) as ledger:
        assert ledger.head == (0, "")
    assert drive(uri, ledger=url) == "worked"


def test_what_a_killed_creation_left_is_completed_and_swept(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def stop(*_, **__):
        raise Killed

    place = tmp_path / "place"
    place.mkdir()
    (place / ".ledger.db.0123456789abcdef.tmp").write_bytes(b"half")
    (place / ".ledger.db.0123456789abcdef.tmp-wal").write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr(creation, "create_secrets", stop)
        with pytest.raises(Killed):
            Workspace.create(place, **RECIPE)
    assert drive(place) == "worked"
    assert not [child for child in place.iterdir() if ".tmp" in child.name]


def test_a_recipe_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "recipe.yaml").write_text("method: phased\n")
    with (
        pytest.raises(InputError, match=r"got one with a recipe\.yaml of its own"),
        created(tmp_path / "w", **RECIPE, is_begun=begun),
    ):
        pass
    assert (tmp_path / "w" / "recipe.yaml").read_text() == "method: phased\n"
    assert {entry.name for entry in (tmp_path / "w").iterdir()} == {"recipe.yaml", LOCK_NAME}
