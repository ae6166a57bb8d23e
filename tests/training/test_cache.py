"""The cache of a shard's constants: used if it is the right one and whole, else filled again; always the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_vits import images

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.store.rows import open_rows
from privshard.training import room
from privshard.training.cache import CacheKey, obtain, require
from privshard.training.encoding import encode
from privshard.training.room import Room, choose

KEY = CacheKey(base="b", transform="t", method="m", dtype="bfloat16")
IDS = [f"id-{number}" for number in range(5)]
PLENTY = Room(1 << 40, 1 << 40, 1 << 40)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


class Filler:
    """Encodes images in batches of two; counts how often."""

    def __init__(self, method, model, num=5, copies=1):
        self.method, self.x, self.copies, self.times = method, images(num * copies, model), copies, 0

    def __call__(self, place):
        self.times += 1
        size = 2 * self.copies
        return encode(
            self.method, self.x.split(size), num_rows=len(self.x), batch_size=size, device="cpu", dtype=torch.bfloat16,
            place=place,
        )  # fmt: skip


@pytest.fixture
def fill(make_method):
    return Filler(*make_method("class row"))


def ask(path, fill, *, key=KEY, asked="auto", ids=IDS, room=PLENTY):
    return obtain(ids, path=path, key=key, asked=asked, device="cpu", fill=fill, room=room)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("asked", ["memory", "disk", "auto"])
@pytest.mark.parametrize("room", [PLENTY, Room(0, 0, 1 << 40), Room(0, 1 << 40, 0), Room(0, 0, 0)])
def test_every_place_holds_the_same_bits(tmp_path, fill, asked, room):
    plain = encode(fill.method, fill.x.split(2), num_rows=5, batch_size=2, device="cpu", dtype=torch.bfloat16)
    path = tmp_path / "shard=000" / "c.safetensors"
    assert equal(ask(path, fill, asked=asked, room=room), plain)
    stored = asked == "disk" or (asked == "auto" and bool(room.disk))
    assert path.exists() == stored
    assert equal(ask(path, fill, asked=asked, room=room), plain)
    assert fill.times == (1 if stored else 2)


def test_without_a_local_disk(fill):
    assert len(ask(None, fill)["n1"]) == 5
    with pytest.raises(ResourceError, match="workspace on a local or mounted disk"):
        ask(None, fill, asked="disk")


def test_no_example_needs_no_cache(tmp_path, fill):
    assert ask(tmp_path / "c", fill, ids=[]) is None
    assert fill.times == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"base": "x"}, {"transform": "x"}, {"method": "x"}, {"dtype": "float32"}])
def test_a_cache_of_something_else_is_filled_again_and_refused_by_name(tmp_path, fill, change):
    path = tmp_path / "c"
    ask(path, fill, key=replace(KEY, **change))
    name, value = next(iter(change.items()))
    with pytest.raises(InputError, match=f"{name}: expected '{getattr(KEY, name)}', got '{value}'"):
        require(path, key=KEY)
    ask(path, fill)
    assert fill.times == 2
    assert require(path, key=KEY).ids == tuple(IDS)


def test_other_rows_another_order_or_number_of_copies_fill_it_again(tmp_path, fill, make_method):
    path = tmp_path / "c"
    ask(path, fill)
    ask(path, fill, ids=[*IDS[1:], IDS[0]])
    assert fill.times == 2
    twice = Filler(*make_method("class row"), copies=2)
    found = ask(path, twice, key=replace(KEY, copies=2, augmentation="crops 1, 1"))
    assert twice.times == 1
    assert equal(ask(path, twice, key=replace(KEY, copies=2, augmentation="crops 1, 1")), found)
    assert twice.times == 1
    assert len(found["logits"]) == 10
    assert open_rows(path).kinds["logits"].shape == (2, 5)


@pytest.mark.parametrize("asked", ["disk", "auto"])
@pytest.mark.parametrize("damage", ["truncated", "head", "row", "foreign"])
def test_a_damaged_cache_is_never_used(tmp_path, fill, asked, damage):
    path = tmp_path / "c"
    expected = {name: tensor.clone() for name, tensor in ask(path, fill, asked=asked).items()}
    data = path.read_bytes()
    start = data.index(open_rows(path).raw("n1")[3].tobytes())
    changed = {
        "truncated": data[:-40],
        "head": data[:20] + b"#" + data[21:],
        "row": data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :],
        "foreign": b"something else",
    }
    path.write_bytes(changed[damage])
    with pytest.raises(VerificationError):
        require(path, key=KEY)
    assert equal(ask(path, fill, asked=asked), expected)
    assert fill.times == 2
    require(path, key=KEY)


def test_a_fill_that_fails_leaves_no_file(tmp_path, fill):
    def broken(place):
        def parts():
            yield fill.x[:2]
            raise InputError("image 3 can't be decoded")

        return encode(fill.method, parts(), num_rows=5, batch_size=2, device="cpu", place=place)

    with pytest.raises(InputError, match="image 3"):
        ask(tmp_path / "c", broken)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_costs_auto_a_second_pass_and_refuses_disk(tmp_path, fill, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    assert len(ask(tmp_path / "c", fill)["n1"]) == 5
    assert fill.times == 2
    with pytest.raises(ResourceError, match="No space left"):
        ask(tmp_path / "c", fill, asked="disk")
    assert not list(tmp_path.iterdir())


def test_where_things_go():
    gpu = Room(device=10, memory=100, disk=1000)
    assert choose("auto", num_bytes=5, room=gpu) == ("device", True)
    assert choose("auto", num_bytes=6, room=gpu) == ("memory", True)
    assert choose("auto", num_bytes=51, room=gpu) == ("disk", True)
    assert choose("auto", num_bytes=501, room=gpu) == ("memory", False)  # too large for the disk: memory has to do
    assert choose("memory", num_bytes=51, room=gpu) == ("memory", False)
    assert choose("memory", num_bytes=5, room=gpu) == ("device", False)
    assert choose("disk", num_bytes=1, room=gpu) == ("disk", True)


def test_free_room_is_what_the_machine_says(tmp_path):
    found = room.free_room("cpu", tmp_path / "not" / "yet" / "there")
    assert found.device == found.memory
    assert 0 < found.memory < 1 << 50
    assert found.disk is not None
    assert found.disk > 0
    assert room.free_room("cpu", None).disk is None
