"""Row files: what is written comes back bit for bit, whole or not at all, and without the rows that had to go."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.store import disk, rows
from privshard.store.rows import RowKind, open_rows, rewrite, writing

IDS = tuple(f"{number:064x}" for number in range(7))
KINDS = {
    "wide": RowKind("BF16", (3, 5)),
    "odd": RowKind("U8", (3,)),
    "one": RowKind("F32", ()),
    "n": RowKind("F32", (2,)),
}
FACTS = {"base": "b", "odd": 'a "quoted" fact'}


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def blocks(ids=IDS, kinds=KINDS):
    """Bytes that are a function of id and name."""
    return {
        name: np.array(
            [np.random.default_rng([int(i, 16), len(name)]).integers(0, 256, k.row_bytes) for i in ids], dtype=np.uint8
        ).reshape(len(ids), k.row_bytes)
        for name, k in kinds.items()
    }


def write(path, ids=IDS, *, pieces=(0, 3, 6), kinds=KINDS, **options):
    data = blocks(ids, kinds)
    with writing(path, ids=ids, kinds=kinds, facts=FACTS, **options) as writer:
        for start, stop in zip(pieces, (*pieces[1:], len(ids)), strict=True):
            if start < stop:
                writer.put(start, {name: block[start:stop] for name, block in data.items()})
    return path


def same(found, ids):
    expected = blocks(ids)
    return found.ids == tuple(ids) and all((found.raw(name) == expected[name]).all() for name in KINDS)


@pytest.mark.parametrize("threads", [1, 3])
def test_comes_back_bit_for_bit(tmp_path, threads):
    found = open_rows(write(tmp_path / "a.safetensors", num_threads=threads))
    assert same(found, IDS)
    assert found.kinds == KINDS
    assert found.facts == FACTS
    assert found.row_bytes == 30 + 3 + 4 + 8
    assert found.damaged(num_threads=threads) == []


def test_is_a_safetensors_file_with_aligned_tensors(tmp_path):
    kinds = {name: kind for name, kind in KINDS.items() if kind.dtype != "BF16"}  # numpy has no bfloat16
    path = write(tmp_path / "a.safetensors", kinds=kinds)
    arrays = load_file(path)
    expected = blocks()
    assert (arrays["n"] == expected["n"].view(np.float32)).all()
    assert (arrays["one"] == expected["one"].view(np.float32)[:, 0]).all()
    found = open_rows(path)
    assert all(found.raw(name).ctypes.data % 4 == 0 for name in ("n", "one"))


def test_the_same_rows_give_the_same_bytes(tmp_path):
    one = write(tmp_path / "a", pieces=(0,))
    assert one.read_bytes() == write(tmp_path / "b", pieces=(0, 1, 2, 3)).read_bytes()


def test_no_rows(tmp_path):
    found = open_rows(write(tmp_path / "a", (), pieces=(0,)))
    assert found.ids == ()
    assert found.damaged() == []


def half(path, error=None):
    with writing(path, ids=IDS, kinds=KINDS, facts={}) as writer:
        writer.put(0, {name: block[:2] for name, block in blocks().items()})
        if error is not None:
            raise error


def test_what_fails_leaves_what_was_there(tmp_path):
    path = write(tmp_path / "a")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="half"):
        half(path, RuntimeError("half"))
    with pytest.raises(InputError, match="5 of them were never written"):
        half(path)
    assert path.read_bytes() == before
    assert [place.name for place in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_a_missing_resource(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows.os, "pwrite", full)
    with pytest.raises(ResourceError, match="No space left"):
        write(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_size_or_twice_are_refused(tmp_path):
    with (
        pytest.raises(InputError, match="rows of n: expected uint8"),
        writing(tmp_path / "a", ids=IDS, kinds=KINDS, facts={}) as writer,
    ):
        writer.put(0, {**blocks(), "n": np.zeros((7, 9), np.uint8)})
    with pytest.raises(InputError, match="every id once"):
        write(tmp_path / "a", (IDS[0], IDS[0]), pieces=(0,))


def test_every_truncation_is_seen(tmp_path):
    path = write(tmp_path / "a")
    data = path.read_bytes()
    for size in [0, 4, 8, 100, *range(200, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(VerificationError, match="expected a"):
            open_rows(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(VerificationError, match="whole row file"):
        open_rows(path)
    with pytest.raises(VerificationError, match="can be read"):
        open_rows(tmp_path / "absent")


def test_every_changed_byte_is_seen(tmp_path):
    path = write(tmp_path / "a")
    data = path.read_bytes()
    for at in range(0, len(data), 13):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            found = open_rows(path)
        except VerificationError:
            continue
        assert len(found.damaged()) == 1, at


@pytest.mark.parametrize("gone", [{0}, {6}, {2, 3}, set(range(7)), {1, 5}])
def test_rewriting_gives_the_file_of_the_others(tmp_path, monkeypatch, gone):
    monkeypatch.setattr(rows, "_CHUNK_BYTES", 100)
    path = write(tmp_path / "a")
    kept = [identity for row, identity in enumerate(IDS) if row not in gone]
    assert rewrite(path, keep={*kept, "unknown"}) == len(gone)
    assert same(open_rows(path), kept)
    assert path.read_bytes() == write(tmp_path / "b", kept, pieces=(0,)).read_bytes()
    for row in gone:
        assert IDS[row].encode() not in path.read_bytes()


def test_rewriting_nothing_writes_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "a")
    monkeypatch.setattr(disk, "_temporary", None)
    assert rewrite(path, keep=IDS) == 0


def test_damage_is_not_carried_on_under_a_new_digest(tmp_path):
    path = write(tmp_path / "a")
    found = open_rows(path)
    at = path.read_bytes().index(found.raw("wide")[2].tobytes())
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(30))
    with pytest.raises(VerificationError, match="undamaged"):
        rewrite(path, keep=IDS[1:])
    assert rewrite(path, keep=[*IDS[:2], *IDS[3:]]) == 1  # the damaged one is the one that goes
