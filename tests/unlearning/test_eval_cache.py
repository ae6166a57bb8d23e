"""The cache of held-out rows: exact round trips, arithmetic against loops, and files that must never be used."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save as encode

from privshard.core.errors import InputError
from privshard.core.model import Composition
from privshard.unlearning import eval_cache
from privshard.unlearning.eval_cache import CONSTANTS_PATH, LOGITS_PATH, EvalCache

CLASSES = ("cat", "dog", "eel")


def make_cache(rows=5, components=("a", "b")):
    rng = np.random.default_rng(0)
    return EvalCache(
        ids=tuple(f"id{row}" for row in range(rows)),
        labels_B=rng.integers(0, 3, rows),
        base_BC=rng.standard_normal((rows, 3)).astype(np.float32),
        component_logits={name: rng.standard_normal((rows, 3)).astype(np.float32) for name in components},
    )


def flat(cache):
    """Everything a cache holds, row by row."""
    logits = cache.component_logits
    return {
        identity: (int(cache.labels_B[row]), cache.base_BC[row].tolist(), {n: logits[n][row].tolist() for n in logits})
        for row, identity in enumerate(cache.ids)
    }


@pytest.mark.parametrize(("rows", "components"), [(5, ("a", "b")), (0, ("a",)), (3, ())])
def test_round_trip(world, rows, components):
    cache = make_cache(rows, components)
    eval_cache.save(world.workspace, cache)
    found = eval_cache.load(world.workspace)
    assert found.ids == cache.ids
    assert flat(found) == flat(cache)
    assert (found.base_BC.dtype, found.labels_B.dtype, found.base_BC.shape) == (np.float32, np.int64, (rows, 3))


def test_none_where_there_is_no_file(world):
    world.workspace.objects.delete_tree("cache/eval")
    assert eval_cache.load(world.workspace) is None
    assert eval_cache.load_constants(world.workspace, ids=(), base_digest="x") is None


def test_truncated_and_changed_files_are_never_used(world):
    eval_cache.save(world.workspace, make_cache())
    whole = world.workspace.objects.read(LOGITS_PATH)
    for length in range(0, len(whole), 17):
        world.workspace.objects.write(LOGITS_PATH, whole[:length])
        assert eval_cache.load(world.workspace) is None
    for place in range(0, len(whole), 13):
        world.workspace.objects.write(LOGITS_PATH, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = eval_cache.load(world.workspace)
        assert found is None or flat(found) == flat(make_cache())


@pytest.mark.parametrize("metadata", [None, {"format": "x", "ids": "[]"}, {"format": "privshard held-out logits 1"}])
def test_foreign_files_are_never_used(world, metadata):
    world.workspace.objects.write(LOGITS_PATH, encode({"base": np.zeros((0, 3), np.float32)}, metadata=metadata))
    world.workspace.objects.write(CONSTANTS_PATH, encode({"base": np.zeros((0, 3), np.float32)}, metadata=metadata))
    assert eval_cache.load(world.workspace) is None
    assert eval_cache.load_constants(world.workspace, ids=(), base_digest="x") is None


def test_shapes_must_agree():
    cache = make_cache()
    for wrong in (np.zeros((4, 3)), np.zeros((5, 2)), np.zeros(5)):
        with pytest.raises(InputError, match="Component c"):
            cache.with_component("c", wrong)
    with pytest.raises(InputError, match="5 rows"):
        EvalCache(cache.ids, cache.labels_B[:4], cache.base_BC, {})
    with pytest.raises(InputError, match="once"):
        EvalCache(("x", "x"), cache.labels_B[:2], cache.base_BC[:2], {})


@pytest.mark.parametrize(
    "gone", [{"id0"}, {"id2"}, {"id4"}, {"id0", "id3", "unknown"}, set(), {f"id{i}" for i in range(5)}]
)
def test_without_rows_is_a_filter(gone):
    cache = make_cache()
    left = cache.without_rows(gone)
    assert left.ids == tuple(name for name in cache.ids if name not in gone)
    assert flat(left) == {name: row for name, row in flat(cache).items() if name not in gone}


def test_components_come_and_go():
    cache = make_cache()
    added = cache.with_component("c", np.ones((5, 3)))
    assert sorted(added.component_logits) == ["a", "b", "c"]
    assert added.component_logits["c"].dtype == np.float32
    assert flat(added.without_component("c")) == flat(cache)
    assert flat(cache.without_component("unknown")) == flat(cache)
    assert cache.covers(Composition("b", {"a": 1.0}))
    assert not cache.covers(Composition("b", {"a": 0.5, "c": 0.5}))


def test_metrics_are_those_of_the_weighted_sum():
    cache = make_cache(40)
    weights = {"a": 0.25, "b": 0.75}
    hits = 0
    for row in range(40):
        logits = [
            float(cache.base_BC[row, c]) + sum(weights[n] * float(cache.component_logits[n][row, c]) for n in weights)
            for c in range(3)
        ]
        hits += logits.index(max(logits)) == cache.labels_B[row]
    found = cache.metrics(Composition("base", weights), CLASSES)
    assert found["accuracy"] == hits / 40
    assert 0 < hits < 40
    with pytest.raises(InputError, match="logits"):
        cache.metrics(Composition("base", {"z": 1.0}), CLASSES)


def test_constants_are_for_these_rows_in_this_order_on_this_base(world):
    arrays = {"n1": np.arange(12, dtype=np.float32).reshape(3, 2, 2), "q": np.ones((3, 5), np.float32)}
    assert eval_cache.save_constants(world.workspace, ids=("x", "y", "z"), arrays=arrays, base_digest="B")
    found = eval_cache.load_constants(world.workspace, ids=("x", "y", "z"), base_digest="B")
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in arrays.items()}
    for ids, base in ((("x", "z", "y"), "B"), (("x", "y"), "B"), (("x", "y", "z"), "C")):
        assert eval_cache.load_constants(world.workspace, ids=ids, base_digest=base) is None
    with pytest.raises(InputError, match="3 rows"):
        eval_cache.save_constants(world.workspace, ids="xyz", arrays={"n1": np.ones((2, 2))}, base_digest="B")


def test_large_constants_are_not_kept_and_leave_no_older_ones(world, monkeypatch):
    arrays = {"n1": np.ones((2, 4), np.float32)}
    monkeypatch.setattr(eval_cache, "MAX_CONSTANTS_BYTES", 32)
    assert eval_cache.save_constants(world.workspace, ids=("x", "y"), arrays=arrays, base_digest="B")
    monkeypatch.setattr(eval_cache, "MAX_CONSTANTS_BYTES", 31)
    assert not eval_cache.save_constants(world.workspace, ids=("x", "y"), arrays=arrays, base_digest="B")
    assert not world.workspace.objects.exists(CONSTANTS_PATH)


def test_erasing_rows_reaches_both_files(world):
    cache, workspace = make_cache(), world.workspace
    eval_cache.save(workspace, cache)
    arrays = {"n1": np.arange(10, dtype=np.float32).reshape(5, 2)}
    eval_cache.save_constants(workspace, ids=cache.ids, arrays=arrays, base_digest="B")
    keep = ("id0", "id3", "unknown")
    for _ in range(2):
        eval_cache.erase_rows(workspace, keep=keep)
        assert flat(eval_cache.load(workspace)) == {name: row for name, row in flat(cache).items() if name in keep}
        found = eval_cache.load_constants(workspace, ids=("id0", "id3"), base_digest="B")
        assert found["n1"].tolist() == [[0.0, 1.0], [6.0, 7.0]]
        assert eval_cache.constants_ids(workspace) == ("id0", "id3")


def test_erasing_nothing_writes_nothing(world, monkeypatch):
    keep = world.rows(None).ids
    monkeypatch.delattr(type(world.workspace.objects), "write")
    eval_cache.erase_rows(world.workspace, keep=keep)
    eval_cache.keep_components(world.workspace, world.composition.components)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "no rows leading"])
def test_erasure_deletes_what_it_cannot_understand(world, damage):
    objects = world.workspace.objects
    for path, kind in ((LOGITS_PATH, "logits"), (CONSTANTS_PATH, "constants")):
        if damage == "truncated":
            objects.write(path, objects.read(path)[:-1])
        elif damage == "foreign":
            objects.write(path, b"personal")
        else:
            metadata = {"format": f"privshard held-out {kind} 1", "ids": json.dumps(["x"]), "base": "B"}
            objects.write(path, encode({"base": np.ones((2, 3), np.float32)}, metadata=metadata))
    objects.write("cache/eval/other.bin", b"personal")
    eval_cache.erase_rows(world.workspace, keep=world.rows(None).ids)
    assert objects.list("cache/eval") == []


def test_keeping_components(world):
    eval_cache.save(world.workspace, make_cache(components=("a", "b", "c")))
    for _ in range(2):
        eval_cache.keep_components(world.workspace, {"b", "unknown"})
        assert sorted(eval_cache.load(world.workspace).component_logits) == ["b"]
