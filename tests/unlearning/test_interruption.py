"""A removal that is killed before any of its writes, and run again, ends as if nothing had happened."""

from __future__ import annotations

import shutil

import pytest

from privshard.store import rows
from privshard.store.journal import Journal
from privshard.store.objects import ObjectStore
from privshard.unlearning import eval_cache

WRITES = [
    (ObjectStore, "write"),
    (ObjectStore, "delete"),
    (ObjectStore, "delete_tree"),
    (Journal, "append"),
    (rows, "rewrite"),
]
VOLATILE = {"when", "signature", "spend", "composition_after", "component_after"}


class Killed(BaseException):
    """Nothing handles it, as nothing handles a kill."""


@pytest.fixture
def kill_before(monkeypatch):
    """number -> from now on, the write of that number raises; without a number, writes are counted only.
    Returns the list of what was written."""
    originals = [(owner, name, getattr(owner, name)) for owner, name in WRITES]
    done: list[str] = []
    limit: list[int | None] = [None]

    def counted(name, original):
        def call(self, *args, **kwargs):
            if limit[0] is not None and len(done) >= limit[0]:
                raise Killed
            done.append(f"{name} {args[:1]}")
            return original(self, *args, **kwargs)

        return call

    for owner, name, original in originals:
        monkeypatch.setattr(owner, name, counted(name, original))

    def arm(number: int | None) -> list[str]:
        done.clear()
        limit[0] = number
        return done

    return arm


def end_state(world):
    """What a finished removal leaves, told without the ids that depend on how often was trained."""
    with world.workspace.ledger.kept_open():
        return _told(world)


def _rounded(value):
    """Metrics are sums in the order of the components' ids, which are drawn anew: the last digits may differ."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 12) if isinstance(value, float) else value


def _told(world):
    workspace = world.workspace
    shards = {name: shard for shard in range(3) if (name := world.component(shard)) is not None}
    receipts = [item.receipt for item in workspace.ledger.requests()]
    cache = eval_cache.load(workspace)
    return {
        "data": {path: workspace.objects.read(path) for path in workspace.objects.list("data")},
        "files": [path for path in workspace.objects.list() if path.split("/")[0] not in ("components", "private")],
        "num_component_files": len(workspace.objects.list("components") + workspace.objects.list("private")),
        "weights": {shards[name]: weight for name, weight in world.composition.weights.items()},
        "tensors": {
            shard: {key: array.tobytes() for key, array in workspace.load_component(name)[1].items()}
            for name, shard in shards.items()
        },
        "models": [model.version for model in workspace.ledger.models()],
        "receipts": [
            {key: _rounded(value) for key, value in receipt.items() if key not in VOLATILE}
            for receipt in receipts
            if receipt
        ],
        "suppressed": workspace.ledger.suppressed(),
        "caches": {path: workspace.objects.read(path) for path in workspace.objects.list("cache") if "shard" in path},
        "cache": (cache.ids, {shards[name]: z.tobytes() for name, z in cache.component_logits.items()}),
        "failed": world.failed(),
    }


@pytest.mark.parametrize(
    ("mode", "held_out_only", "seeded"),
    [("drop", False, True), ("retrain", False, True), ("retrain", False, False), ("auto", True, True)],
)
def test_killed_before_any_write_and_run_again(
    template, build_world, open_world, tmp_path, kill_before, mode, held_out_only, seeded
):
    if not seeded:
        fresh = build_world("fresh", insecure_seed=None)
        fresh.workspace.close()
        template = fresh.root
    made = open_world(template)
    subject = "held-1" if held_out_only else next(n for n in made.rows(0).subjects if n in made.rows(None).subjects)
    made.workspace.close()

    def copy(number):
        shutil.copytree(template, tmp_path / f"copy-{number}")
        return open_world(tmp_path / f"copy-{number}")

    undisturbed = copy("undisturbed")
    writes = kill_before(None)
    undisturbed.forget(subject, mode)
    total = len(writes)
    expected = end_state(undisturbed)
    assert expected["failed"] == {}
    assert total > 10
    kept_open = 0
    for number in range(total):
        world = copy(number)
        kill_before(number)
        with pytest.raises(Killed):
            world.forget(subject, mode)
        kill_before(None)
        kept_open += "open requests" in world.failed()
        again = world.reopened()
        again.budget += 2  # an attempt that was killed in training counts as spent
        receipt = again.forget(subject, mode)
        assert receipt is not None
        assert end_state(again) == expected, f"killed before write {number}: {writes}"
        again.workspace.close()
        shutil.rmtree(again.root)
    assert kept_open > total / 3


def test_a_component_that_was_committed_before_the_kill_is_not_trained_again(world):
    def killed(shard):
        world.learn(shard)
        raise Killed

    subject = world.rows(1).subjects[0]
    with pytest.raises(Killed):
        world.forget(subject, "retrain", retrain=killed)
    again = world.reopened()
    receipt = again.forget(subject)
    assert again.trained == []
    assert receipt["component_after"] == again.component(1)
    assert receipt["metrics_after"] is not None
    assert again.failed() == {}
