"""Objects under a lease: what a holder that lost it does, or has done on its way, changes nothing that is read."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from privshard.core.errors import ResourceError
from privshard.store.below import Below
from privshard.store.layout import LOCATOR_PARTS
from privshard.store.leased import LeasedObjects
from privshard.store.ledger import Ledger
from privshard.store.objects import ObjectStore

_VERBS = ("read", "write", "exists", "list", "delete", "delete_tree", "sweep")
ROWS, CACHE = "data/shard=000/part-0.parquet", "cache/eval/logits.safetensors"


@pytest.fixture
def url(server):
    place = server.database()
    Ledger.create(place, workspace_id="w1").close()
    return place


class Driver:
    """One process's view of the workspace; `silent` lets its lease run out without another word."""

    def __init__(self, root, url):
        self.ledger = Ledger.open(url)
        self.objects = LeasedObjects(root, ledger=self.ledger)
        self.raw = SimpleNamespace(**{name: getattr(self.objects._folder, name) for name in _VERBS})
        self.objects.__dict__["_folder"] = self.raw

    def hold(self):
        self.held = self.ledger.hold_lease(root="ws")
        self.lease = self.held.__enter__()
        self.objects.hold_by(self.lease)
        self.objects.sweep()

    def fall_silent(self):
        """What the database and the process see after a stall that was longer than the lease."""
        self.lease._stop.set()
        self.lease._good_until = 0.0
        self.ledger._journal.run(lambda c: c.exec_driver_sql("UPDATE lease SET renewed = 0"))

    def release(self):
        self.held.__exit__(None, None, None)
        self.objects.hold_by(None)
        self.ledger.close()


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path):
    return str(tmp_path / "ws") if request.param == "disk" else request.getfixturevalue("buckets").uri()


@pytest.fixture
def driver(root, url):
    made = []

    def make():
        made.append(Driver(root, url))
        return made[-1]

    yield make
    for one in made:
        one.ledger.close()


def test_rewritten_objects_count_from_the_ledgers_row(driver, root):
    first = driver()
    first.hold()
    first.objects.write(ROWS, b"old")
    first.objects.write(ROWS, b"new")
    first.objects.write("models/v0001.json", b"{}")
    assert first.objects.read(ROWS) == b"new"
    assert first.objects.list() == [ROWS, "models/v0001.json"]
    names = ObjectStore(root).list("data")
    assert len(names) == 1
    assert names[0].startswith("data/shard=000/part-0.g000001-")
    sent = pickle.loads(pickle.dumps(first.objects))
    assert type(sent) is ObjectStore
    assert sent.read(ROWS) == b"new"
    assert list(ObjectStore(root, names=first.objects.names("data/shard=000")).names()) == [ROWS]
    first.objects.delete(ROWS)
    assert not first.objects.exists(ROWS)
    assert ObjectStore(root).list("data") == []
    first.release()


def test_a_folder_of_leased_objects_is_fenced_too(driver, root):
    """As a locator's parts are, which are written again and again while it is trained."""
    first, second = driver(), driver()
    first.hold()
    parts = Below(first.objects, LOCATOR_PARTS)
    for content in (b"old", b"new"):
        parts.write("fit.safetensors", content)
    parts.write("episodes/0.safetensors", b"rows")
    assert parts.read("fit.safetensors") == b"new"
    assert parts.list() == ["episodes/0.safetensors", "fit.safetensors"]
    assert parts.list("episodes") == ["episodes/0.safetensors"]
    assert first.objects.list() == [f"{LOCATOR_PARTS}/{path}" for path in parts.list()]
    with parts.fetched({"fit": "fit.safetensors"}) as files:
        assert files["fit"].read_bytes() == b"new"
    assert pickle.loads(pickle.dumps(parts)).read("fit.safetensors") == b"new"
    first.fall_silent()
    second.hold()
    second.objects.delete_tree(LOCATOR_PARTS)
    for change in (lambda: parts.write("fit.safetensors", b"late"), lambda: parts.delete_tree("episodes")):
        with pytest.raises(ResourceError, match="lost the workspace"):
            change()
    first.raw.write(f"{LOCATOR_PARTS}/fit.g000001-0123abcd.safetensors", b"late")  # it was on its way all the while
    assert not Below(second.objects, LOCATOR_PARTS).exists("fit.safetensors")
    second.objects.sweep()
    assert ObjectStore(root).list() == []
    second.release()


def test_only_a_holder_rewrites(driver):
    reader = driver()
    for change in (
        lambda: reader.objects.write(ROWS, b""),
        lambda: reader.objects.delete(CACHE),
        lambda: reader.objects.delete_tree("data"),
        lambda: reader.objects.delete_tree("cache/shard=000"),
    ):
        with pytest.raises(ResourceError, match="hold the workspace"):
            change()


def test_a_reader_follows_a_rewrite(driver):
    writer, reader = driver(), driver()
    writer.hold()
    writer.objects.write(ROWS, b"old")
    assert reader.objects.read(ROWS) == b"old"
    writer.objects.write(ROWS, b"new")
    assert reader.objects.exists(ROWS)
    assert reader.objects.read(ROWS) == b"new"
    writer.objects.delete(ROWS)
    assert not reader.objects.exists(ROWS)
    writer.release()


def test_whoever_lost_the_lease_writes_and_deletes_nothing(driver):
    first, second = driver(), driver()
    first.hold()
    for path in (ROWS, CACHE, "components/c.json"):
        first.objects.write(path, b"by the first")
    first.fall_silent()
    second.hold()
    second.objects.write(ROWS, b"by the second")
    for change in (
        lambda: first.objects.write(ROWS, b"late"),
        lambda: first.objects.write("manifest.json", b"late"),
        lambda: first.objects.delete(ROWS),
        lambda: first.objects.delete("components/c.json"),
        lambda: first.objects.delete_tree("data"),
        lambda: first.objects.delete_tree("cache"),
        lambda: first.objects.delete_tree("components"),
    ):
        with pytest.raises(ResourceError, match="lost the workspace"):
            change()
    assert second.objects.list() == [CACHE, "components/c.json", ROWS]
    assert second.objects.read(ROWS) == b"by the second"
    second.release()


def test_a_write_that_was_on_its_way_is_never_read_and_is_swept(driver):
    """The upload has left the first driver; it arrives after the second has taken over and rewritten the rows."""
    first, second = driver(), driver()
    first.hold()
    first.objects.write(ROWS, b"with ada")
    real = first.raw.write

    def slow(name, data):
        first.fall_silent()
        second.hold()
        second.objects.write(ROWS, b"ada was forgotten")
        real(name, data)

    first.raw.write = slow
    with pytest.raises(ResourceError, match="lost the workspace"):
        first.objects.write(ROWS, b"with ada, without bob")
    assert second.objects.read(ROWS) == b"ada was forgotten"
    stray = [path for path in second.objects.list("data") if path != ROWS]
    assert len(stray) == 1
    assert ".g000001-" in stray[0]
    second.release()
    third = driver()
    third.hold()
    assert third.objects.list("data") == [ROWS]
    assert third.objects.read(ROWS) == b"ada was forgotten"
    third.release()


def test_a_deletion_that_was_on_its_way_spares_what_the_next_holder_wrote(driver):
    """The listing has left the first driver; when it comes back the second has written."""
    first, second = driver(), driver()
    first.hold()
    first.objects.write(ROWS, b"old")
    real = first.raw.list

    def slow(prefix):
        first.raw.list = real
        first.fall_silent()
        second.hold()
        second.objects.write(ROWS, b"by the second")
        return real(prefix)

    first.raw.list = slow
    with pytest.raises(ResourceError, match="lost the workspace"):
        first.objects.delete_tree("data")
    assert second.objects.read(ROWS) == b"by the second"
    second.release()


def test_what_was_written_and_not_named_is_swept_by_the_next_holder(driver, root):
    first = driver()
    first.hold()
    first.raw.write("data/shard=000/part-0.g000001-00000000.parquet", b"killed before the ledger's row")
    first.release()
    second = driver()
    second.hold()
    assert ObjectStore(root).list("data") == []
    second.release()


def test_stored_first_then_named_then_deleted(driver, monkeypatch):
    """Whatever fails in between, what counted before is still there."""
    holder = driver()
    holder.hold()
    holder.objects.write(ROWS, b"old")

    def fail(*_):
        raise ResourceError("It fails here.")

    def breaks(where, verb, change):
        with monkeypatch.context() as patch:
            patch.setattr(where, verb, fail)
            with pytest.raises(ResourceError, match="fails here"):
                change()

    objects = holder.objects
    for where, verb in ((holder.raw, "write"), (holder.ledger, "name_objects")):
        breaks(where, verb, lambda: objects.write(ROWS, b"new"))
        assert objects.read(ROWS) == b"old"
    for change in (lambda: objects.delete(ROWS), lambda: objects.delete_tree("data")):
        breaks(holder.ledger, "name_objects", change)
        assert objects.read(ROWS) == b"old"
    breaks(holder.raw, "delete", lambda: objects.delete(ROWS))
    assert not objects.exists(ROWS)
    holder.release()
