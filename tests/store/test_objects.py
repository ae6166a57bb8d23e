"""Objects appear whole or not at all, locally and through pyarrow."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
import stat
import subprocess
import sys

import pytest

from privshard.core.errors import InputError, PrivshardError, ResourceError, VerificationError
from privshard.store import disk
from privshard.store.objects import ObjectStore


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    return ObjectStore(tmp_path / "objects" if request.param == "local" else "mock:///bucket/objects")


def test_round_trip_list_and_deletion(store):
    assert store.list() == []
    for path in ("data/shard=001/a", "data/shard=001/deep/b", "data/shard=0011/c", "top"):
        store.write(path, path.encode())
    store.write("top", b"second")
    assert store.read("top") == b"second"
    assert store.read("data/shard=001/deep/b") == b"data/shard=001/deep/b"
    assert store.list("data/shard=001") == ["data/shard=001/a", "data/shard=001/deep/b"]
    assert store.list("nowhere") == []
    assert store.exists("top")
    assert not store.exists("data/shard=001")
    store.delete_tree("data/shard=001")
    store.delete_tree("data/shard=001")
    store.delete("top")
    store.delete("top")
    store.delete("no/such/folder/object")
    assert store.list() == ["data/shard=0011/c"]


def test_missing_object_is_named(store):
    with pytest.raises(VerificationError, match="models/v0001"):
        store.read("models/v0001.json")


@pytest.mark.parametrize("path", ["", ".", "/etc/passwd", "../secret", "data/../../secret", "a\0b", "a\\b"])
def test_paths_cannot_leave_the_store(store, path):
    for verb in (store.read, store.exists, store.delete, store.delete_tree):
        with pytest.raises(InputError, match="relative path"):
            verb(path)
    with pytest.raises(InputError):
        store.write(path, b"")


def test_json_round_trip_and_damage(store):
    store.write_json("a.json", {"b": [1, 0.1], "a": "é"})
    assert store.read_json("a.json") == {"a": "é", "b": [1, 0.1]}
    store.write("a.json", b"{")
    with pytest.raises(VerificationError, match=r"a\.json"):
        store.read_json("a.json")
    with pytest.raises(ValueError, match="JSON"):
        store.write_json("nan.json", float("nan"))


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ObjectStore("w").root == str(tmp_path / "w")
    assert ObjectStore(f"file://{tmp_path}/a%20b").root == str(tmp_path / "a b")
    assert ObjectStore("w").local_path("a/b") == tmp_path / "w/a/b"
    assert pickle.loads(pickle.dumps(ObjectStore("w"))).root == str(tmp_path / "w")
    with pytest.raises(ResourceError, match="local"):
        ObjectStore("mock:///bucket").local_path("a")
    with pytest.raises(InputError, match="zzz://"):
        ObjectStore("zzz://bucket").read("a")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_old_object_and_no_temporary_file(tmp_path, monkeypatch, call):
    store = ObjectStore(tmp_path)
    store.write("a/b", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.os, call, full)
    with pytest.raises(ResourceError, match=r"a/b.*No space left.*Free space"):
        store.write("a/b", b"new")
    assert store.read("a/b") == b"old"
    assert os.listdir(tmp_path / "a") == ["b"]


def _write_beyond_limit(folder, outcome):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        ObjectStore(folder).write("a/big", bytes(5000))
    except PrivshardError as error:
        outcome.put((error.kind, os.listdir(folder / "a")))


def test_write_that_stops_midway_leaves_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    outcome = context.Queue()
    child = context.Process(target=_write_beyond_limit, args=(tmp_path, outcome))
    child.start()
    assert outcome.get(timeout=60) == ("resource_missing", [])
    child.join()


def test_remote_write_that_fails_leaves_nothing(monkeypatch):
    store = ObjectStore("mock:///bucket")
    store.write("a", b"old")
    folder = store._folder
    files = folder._files

    class Failing:
        def __getattr__(self, name):
            return getattr(files, name)

        def open_output_stream(self, path):
            files.open_output_stream(path).close()
            raise OSError(errno.EIO, "broken pipe")

    monkeypatch.setattr(folder, "_files", Failing())
    with pytest.raises(ResourceError, match="broken pipe"):
        store.write("a", b"new")
    assert not store.exists("a")


def test_unwritable_folder_names_the_remedy(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="file"):
        ObjectStore(tmp_path / "file").write("a", b"")


def test_sweep_removes_what_killed_writers_left(tmp_path):
    store = ObjectStore(tmp_path)
    store.write("data/rows", b"kept")
    (tmp_path / "data/.rows.0123456789abcdef.tmp").write_bytes(b"personal")
    assert store.list("data") == ["data/rows"]
    assert store.sweep() == ["data/.rows.0123456789abcdef.tmp"]
    assert os.listdir(tmp_path / "data") == ["rows"]


def test_write_new_never_replaces(tmp_path):
    assert disk.write_new(tmp_path / "keys", b"first")
    assert not disk.write_new(tmp_path / "keys", b"second")
    assert (tmp_path / "keys").read_bytes() == b"first"
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["keys"]


def test_local_store_never_imports_pyarrow(tmp_path):
    code = (
        "import sys; from privshard.store.objects import ObjectStore; s = ObjectStore(sys.argv[1]);"
        "s.write('a', b'x'); s.list(); s.read('a'); sys.exit('pyarrow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
