"""Workspaces in an object store, their ledger on a server: the same results as on a disk, and through faults."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from pathlib import Path

import pytest
from tiny_digits import people, write_people

from privshard import api
from privshard.api import shards as api_shards
from privshard.api import train
from privshard.core.errors import InputError, ResourceError
from privshard.data.shards import partition_ids
from privshard.store.layout import constants_path, shard_dir
from privshard.store.ledger import Ledger
from privshard.store.lock import BusyError
from privshard.store.objects import ObjectStore
from privshard.store.workspace import Workspace
from privshard.unlearning import shard_cache

PASSWORD = "hunter2"


@pytest.fixture
def ledger(server):
    return server.database().replace("postgres@", f"postgres:{PASSWORD}@")


@pytest.fixture
def bucket(buckets):
    return buckets.uri()


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path, make_recipe):
    """(root, recipe) of a workspace on a disk with a ledger of its own, and in a bucket with one on a server."""
    if request.param == "disk":
        return str(tmp_path / "place"), make_recipe(insecure_seed=3)
    return request.getfixturevalue("bucket"), make_recipe(insecure_seed=3, ledger=request.getfixturevalue("ledger"))


def everything(root):
    objects = ObjectStore(root)
    return {path: objects.read(path) for path in objects.list()}


def failed(root):
    return {check["name"] for check in api.verify(root)["checks"] if not check["ok"]}


def test_a_whole_life_gives_what_a_disk_gives(make_recipe, bucket, ledger, seeded_workspace, tmp_path, monkeypatch):
    jobs = []
    real = api_shards._job
    monkeypatch.setattr(api_shards, "_job", lambda *args, **kwargs: jobs.append(real(*args, **kwargs)) or jobs[-1])
    recipe, disk = make_recipe(insecure_seed=3, ledger=ledger), str(seeded_workspace)
    trained = train(recipe, workspace=bucket)
    with Workspace.open(disk) as local, Workspace.open(bucket, ledger=ledger) as remote:
        mine = [item.component for item in remote.ledger.reservations()]
        assert mine == [item.component for item in local.ledger.reservations()]
        assert sorted(c["id"] for c in trained["components"]) == sorted(map(str, mine))
        keys = [remote.secrets.partition_key, remote.secrets.hashing_key, remote.secrets.signing_key]
    for job in jobs:  # a worker learns of its own shard's rows alone
        sent = pickle.dumps(job)
        assert list(job.names) == [f"data/shard={job.shard:03d}/part-0.parquet"]
        assert not any(key in sent or key.hex().encode() in sent for key in keys)
        assert b"postgres" not in sent
    assert train(recipe, workspace=bucket)["components"] == trained["components"]
    for verb in (api.evaluate, api.influence):
        assert verb(bucket) == verb(disk)
    image = tmp_path / "a.png"
    image.write_bytes(next(people())["image"]["bytes"])
    assert api.predict(bucket, [str(image)]) == api.predict(disk, [str(image)])
    for mode, subject in (("retrain", "person-01"), ("drop", "person-00")):
        here, there = (api.forget(root, subject=subject, mode=mode) for root in (bucket, disk))
        assert here["status"] == there["status"] == "done"
        assert here["metrics_after"] == there["metrics_after"]
        assert here["receipt"]["guarantee"] == there["receipt"]["guarantee"]
    assert api.budget(bucket) == api.budget(disk)
    assert failed(bucket) == failed(disk) == set()
    for path, content in everything(bucket).items():
        assert PASSWORD.encode() not in content, path
        assert b"person-00" not in content, path


def _changed(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


DAMAGES = {
    "a bit of a component": ("components/", ".safetensors", _changed),
    "the held-out rows are gone": ("data/eval", ".parquet", None),
    "a shard is cut off": ("data/shard=001", ".parquet", lambda content: content[:-20]),
    "the manifest is changed": ("manifest", ".json", lambda content: content.replace(b"epsilon", b"epsilom")),
    "the model is changed": ("models/", ".json", lambda content: content.replace(b"0.5", b"0.6")),
    "the cached logits are changed": ("cache/eval/logits", ".safetensors", _changed),
}


@pytest.mark.slow
def test_planted_damage_is_found_as_on_a_disk(make_recipe, bucket, ledger, seeded_workspace, tmp_path):
    train(make_recipe(insecure_seed=3, ledger=ledger), workspace=bucket)
    disk = str(seeded_workspace)
    for what, (folder, suffix, change) in DAMAGES.items():
        found = []
        for root in (bucket, disk):
            objects = ObjectStore(root)
            path = next(path for path in objects.list() if path.startswith(folder) and path.endswith(suffix))
            good = objects.read(path)
            objects.delete(path) if change is None else objects.write(path, change(good))
            found.append(failed(root))
            objects.write(path, good)
        assert found[0] == found[1] != set(), what
    for stray in ("data/shard=000/other.parquet", "thesis.txt"):
        found = []
        for root in (bucket, disk):
            ObjectStore(root).write(stray, b"stray")
            found.append(failed(root))
            ObjectStore(root).delete(stray)
        assert found[0] == found[1] != set(), stray
    assert failed(bucket) == failed(disk) == set()


def test_of_two_drivers_one_works_and_the_other_is_told_who_does(place, monkeypatch):
    """They race on a workspace that neither has made, and the loser takes nothing of the winner's away."""
    root, recipe = place
    at_work, may_go_on = threading.Event(), threading.Event()
    real = api_shards.keep

    def slow(*args):
        at_work.set()
        assert may_go_on.wait(120)
        return real(*args)

    monkeypatch.setattr(api_shards, "keep", slow)
    results = []
    first = threading.Thread(target=lambda: results.append(train(recipe, workspace=root)))
    first.start()
    assert at_work.wait(120)
    for change in (lambda: train(recipe, workspace=root), lambda: api.forget(root, subject="person-00")):
        with pytest.raises(BusyError, match=r"but process \d+ on .* \(.*, since 20.* is changing it"):
            change()
    may_go_on.set()
    first.join()
    assert results[0]["model"] == "v0001"
    assert failed(root) == set()


def test_both_start_at_once(place, monkeypatch):
    """Both have found an empty place before either holds it."""
    root, recipe = place
    both_looked = threading.Barrier(2)
    from privshard.api import preparation

    real = preparation.created
    monkeypatch.setattr(
        preparation, "created", lambda *args, **kwargs: (both_looked.wait(120), real(*args, **kwargs))[1]
    )
    outcomes = []

    def run():
        try:
            outcomes.append(train(recipe, workspace=root)["model"])
        except Exception as error:
            outcomes.append(error)

    drivers = [threading.Thread(target=run) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert "v0001" in outcomes
    assert [one for one in outcomes if one != "v0001" and not isinstance(one, BusyError)] == []
    assert failed(root) == set()


def test_without_delete_rights_nothing_is_read_or_kept(make_recipe, bucket, buckets, ledger, monkeypatch):
    from privshard.api import constants

    monkeypatch.setattr(constants, "source_rows", lambda *_: pytest.fail("rows were read"))
    buckets.fail("DELETE|POST .*delete", status=403, code="AccessDenied")
    with pytest.raises(ResourceError, match="right to delete") as caught:
        train(make_recipe(ledger=ledger), workspace=bucket)
    assert caught.value.exit_code == 4
    assert [path.startswith(".probe-") for path in ObjectStore(bucket).list()] == [True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("data/shard%3D001", {"status": 507, "code": "InsufficientStorage"}),
        ("components/", {"status": 503, "code": "SlowDown"}),
        ("cache/eval/logits", {}),
        ("models/", {"status": 507, "code": "InsufficientStorage"}),
    ],
)
def test_storage_that_fails_in_the_middle_is_resumed(make_recipe, bucket, buckets, ledger, where, fault, monkeypatch):
    monkeypatch.setenv("PRIVSHARD_STORAGE_TIMEOUT_S", "5")
    recipe = make_recipe(insecure_seed=3, ledger=ledger)
    buckets.fail(f"PUT .*/{where}", **fault)
    with pytest.raises(ResourceError, match=r"full|overloaded|does not answer"):
        train(recipe, workspace=bucket)
    buckets.heal()
    assert train(recipe, workspace=bucket)["model"] == "v0001"
    assert failed(bucket) == set()


@pytest.mark.slow
def test_a_bad_row_leaves_nothing_in_the_bucket(make_recipe, bucket, ledger, keys_dir, tmp_path):
    rows = list(people())
    rows[5] = {**rows[5], "label": "seven"}
    with pytest.raises(InputError, match="got 'seven'"):
        train(make_recipe(write_people(tmp_path / "bad.parquet", rows), ledger=ledger), workspace=bucket)
    assert ObjectStore(bucket).list() == []
    assert not any(keys_dir.rglob("keys.json"))
    assert train(make_recipe(ledger=ledger), workspace=bucket)["model"] == "v0001"


@pytest.mark.slow
def test_a_database_that_restarts_while_shards_train_is_not_noticed(make_recipe, bucket, ledger, server, monkeypatch):
    real, restarts = api_shards.keep, []

    def keep(*args):
        if not restarts:
            restarts.append(server.restart())
        return real(*args)

    monkeypatch.setattr(api_shards, "keep", keep)
    assert train(make_recipe(ledger=ledger), workspace=bucket)["model"] == "v0001"
    assert restarts
    with Workspace.open(bucket, ledger=ledger) as ws:
        assert [(run.attempt, run.state) for run in ws.ledger.reservations()] == [(0, "committed")] * 2
    assert failed(bucket) == set()


@pytest.mark.slow
def test_a_driver_that_stalls_is_followed_and_writes_nothing_more(make_recipe, bucket, ledger, monkeypatch):
    """While its first result waits to be kept, its lease runs out and another driver does the whole work."""
    recipe, real, stalled = make_recipe(insecure_seed=3, ledger=ledger), api_shards.keep, []

    def keep(workspace, *rest):
        if not stalled:
            lease = workspace.objects._lease
            stalled.append(lease)
            lease._stop.set()
            lease._good_until = 0.0
            workspace.ledger._journal.run(lambda c: c.exec_driver_sql("UPDATE lease SET renewed = 0"))
            train(recipe, workspace=bucket)
        return real(workspace, *rest)

    monkeypatch.setattr(api_shards, "keep", keep)
    with pytest.raises(ResourceError, match="This process lost the workspace"):
        train(recipe, workspace=bucket)
    assert failed(bucket) == set()
    with Workspace.open(bucket, ledger=ledger) as ws:
        held = ws.ledger.reservations()
        assert sorted(run.shard for run in held if run.state == "committed") == [0, 1]
        assert all(run.state == "reserved" for run in held if run.state != "committed")  # not shown unused: spent
    assert train(recipe, workspace=bucket)["model"] == "v0001"


def test_a_driver_that_stalls_before_a_release_lets_nothing_out(make_recipe, bucket, ledger, monkeypatch):
    """The one that follows takes up the same reservations, and every shard is charged once."""
    recipe, real, stalled = make_recipe(insecure_seed=3, ledger=ledger), Ledger.release, []
    keepers, keep = [], api_shards.keep
    monkeypatch.setattr(api_shards, "keep", lambda ws, *rest: (keepers.append(ws.ledger), keep(ws, *rest))[1])

    def release(book, run_id):
        if not stalled:
            stalled.append(book)
            book._journal.run(lambda c: c.exec_driver_sql("UPDATE lease SET renewed = 0"))
            train(recipe, workspace=bucket)
        return real(book, run_id)

    monkeypatch.setattr(Ledger, "release", release)
    with pytest.raises(ResourceError, match="This process lost the workspace"):
        train(recipe, workspace=bucket)
    assert len(keepers) == 2
    assert stalled[0] not in keepers
    assert failed(bucket) == set()
    with Workspace.open(bucket, ledger=ledger) as ws:
        assert [(run.attempt, run.state) for run in ws.ledger.reservations()] == [(0, "committed")] * 2


@pytest.mark.slow
def test_a_clock_that_is_off_is_refused(make_recipe, bucket, ledger, monkeypatch):
    import time

    from privshard.store import journal

    clock = dataclasses.make_dataclass("Clock", [])
    clock.time = staticmethod(lambda: time.time() + 300)
    clock.monotonic, clock.sleep = staticmethod(time.monotonic), staticmethod(time.sleep)
    with monkeypatch.context() as off:
        off.setattr(journal, "time", clock)
        with pytest.raises(
            ResourceError, match=r"clock within 30 s of the ledger's database, it is 300 s ahead"
        ) as caught:
            train(make_recipe(ledger=ledger), workspace=bucket)
        assert "NTP" in caught.value.remedy
        assert not any(path.startswith("data/") for path in ObjectStore(bucket).list())
        off.setenv("PRIVSHARD_CLOCK_TOLERANCE_S", "400")
        assert train(make_recipe(ledger=ledger), workspace=bucket)["model"] == "v0001"


def test_a_ledger_file_needs_a_local_disk(make_recipe, bucket, workspace, tmp_path, monkeypatch):
    from privshard.store import shared_disk

    for ledger in (None, f"sqlite:///{tmp_path}/ledger.db"):
        with pytest.raises(ResourceError, match=r"SQLite needs a local disk.*postgresql://"):
            train(make_recipe(ledger=ledger), workspace=bucket)
    mounts = tmp_path / "mountinfo"
    line = "36 35 98:0 / {} rw,noatime shared:1 - {} server:/export rw\n"
    mounts.write_text(line.format("/", "ext4") + line.format(str(tmp_path).replace(" ", "\\040"), "nfs4"))
    monkeypatch.setattr(shared_disk, "_MOUNTS", mounts)
    with pytest.raises(ResourceError, match=r"shared one \(nfs4\).*postgresql://"):
        train(make_recipe(), workspace=workspace)
    assert not Path(workspace).exists()


def test_under_a_lease_no_cache_of_a_shard_is_rewritten(make_recipe, workspace, ledger):
    """A stalled rewrite would put back what a later holder erased; a deletion can't."""
    train(make_recipe(ledger=ledger, execution={"cache": "disk"}), workspace=workspace)
    with Workspace.open(workspace, ledger=ledger) as ws:
        cached = [shard for shard in (0, 1) if ws.objects.exists(constants_path(shard))]  # by chance, one may be empty
        keep = partition_ids(ws.objects, shard_dir(cached[0]))[1:]
        with pytest.raises(ResourceError, match="hold the workspace"):
            shard_cache.erase_rows(ws, cached[0], keep=keep)
        with ws.hold():
            shard_cache.erase_rows(ws, cached[0], keep=keep)
        assert [shard for shard in (0, 1) if ws.objects.exists(constants_path(shard))] == cached[1:]


def test_a_shared_folder_with_a_server_is_held_by_the_lease(make_recipe, workspace, ledger, monkeypatch):
    recipe = make_recipe(ledger=ledger)
    train(recipe, workspace=workspace)
    with (
        Workspace.open(workspace, ledger=ledger) as ws,
        ws.hold(),
        pytest.raises(BusyError, match="its lease ends in"),
    ):
        api.forget(workspace, subject="person-00")
    assert api.forget(workspace, subject="person-00", mode="drop")["status"] == "done"
    assert failed(workspace) == set()
