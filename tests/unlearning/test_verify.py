"""Verification: a sound workspace passes, and damage to any artefact is named by exactly the check that is about it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privshard.core.model import Composition
from privshard.core.removal import RemovalRequest
from privshard.data.shards import ShardRows, encode_partition, part_path, write_partition
from privshard.store.layout import edit_path, edit_private_path, locator_path, run_path
from privshard.store.public_parts import save_public_parts
from privshard.unlearning import eval_cache
from privshard.unlearning.model_files import write_model
from privshard.unlearning.verify import CHECKS, checks

DAMAGE: dict[str, tuple[Callable, set[str]]] = {}


def damages(*names: str) -> Callable:
    """Register a way to damage a workspace, with the checks that have to fail by it."""

    def register(damage: Callable) -> Callable:
        DAMAGE[damage.__name__] = (damage, set(names))
        return damage

    return register


def first(world) -> str:
    return world.component(0)


@damages("ledger chain")
def an_entry_of_the_ledger_is_changed(world, edit_json):
    with sqlite3.connect(world.root / "ledger.db") as connection:
        connection.execute("UPDATE entries SET payload = replace(payload, 'train', 'trial') WHERE kind = 'model'")


@damages("manifest")
def the_manifest_is_changed(world, edit_json):
    edit_json(world.root / "manifest.json", insecure_seed=None)


@damages("manifest")
def the_manifest_is_missing(world, edit_json):
    (world.root / "manifest.json").unlink()


@damages("manifest")
def the_manifest_is_of_an_earlier_model(world, edit_json):
    earlier = world.workspace.objects.read("manifest.json")
    world.forget(world.rows(0).subjects[0])
    world.workspace.objects.write("manifest.json", earlier)


@damages("public parts")
def something_public_is_there_that_nobody_named(world, edit_json):
    save_public_parts(world.workspace.objects, {"head.bias": np.zeros(3, dtype=np.float32)})


@damages("recipe")
def the_recipe_is_changed(world, edit_json):
    (world.root / "recipe.yaml").write_text("shards: 4\n")


@damages("recipe")
def the_recipe_is_missing(world, edit_json):
    (world.root / "recipe.yaml").unlink()


@damages("components")
def a_tensor_is_changed(world, edit_json):
    path = world.root / world.workspace.component_path(first(world))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@damages("components")
def a_component_is_missing(world, edit_json):
    (world.root / world.workspace.component_path(first(world))).unlink()


@damages("components")
def a_record_names_another_method(world, edit_json):
    edit_json(world.root / world.workspace.component_record_path(first(world)), method="head")


@damages("components")
def a_record_hides_that_it_is_insecure(world, edit_json):
    edit_json(world.root / world.workspace.component_record_path(first(world)), secure_randomness=True)


@damages("components")
def a_record_understates_its_spend(world, edit_json):
    spend = vars(world.workspace.load_record(first(world)).spend)
    edit_json(world.root / world.workspace.component_record_path(first(world)), spend={**spend, "epsilon": 1.0})


@damages("components")
def a_record_names_another_recipe(world, edit_json):
    edit_json(world.root / world.workspace.component_record_path(first(world)), recipe="s" * 64)


@damages("components")
def a_component_of_the_model_was_never_committed(world, edit_json):
    rows = world.rows(0)
    other = world.save(0, 5, rows)
    publish(world, {other if name == first(world) else name for name in world.composition.components})


@damages("component shapes")
def a_component_is_larger_than_the_others(world, edit_json):
    rows, old = world.rows(0), first(world)
    component = world.save(0, 5, rows, shapes={"head.bias": (3,), "head.weight": (3, 5)})
    ledger = world.workspace.ledger
    ledger.reserve("large", shard=0, attempt=5, plan=world.plan_of_training(), admit=lambda _: None)
    ledger.commit("large", component=component)
    publish(world, {component if name == old else name for name in world.composition.components})


@damages("leftover components")
def a_dropped_component_is_put_back(world, edit_json):
    workspace, dropped = world.workspace, first(world)
    paths = [workspace.component_path(dropped), workspace.component_record_path(dropped)]
    kept = {path: workspace.objects.read(path) for path in paths}
    world.forget(world.rows(0).subjects[0], "drop")
    for path, data in kept.items():
        workspace.objects.write(path, data)


@damages("leftover components")
def an_example_list_is_left(world, edit_json):
    private = world.workspace.objects.read(world.workspace.private_path(first(world)))
    world.workspace.objects.write("private/other.json", private)


@damages("leftover components")
def a_copy_of_a_component_is_left(world, edit_json):
    world.workspace.objects.write(f"{world.workspace.component_path(first(world))}.bak", b"")


@damages("example lists")
def an_example_list_is_missing(world, edit_json):
    world.workspace.objects.delete(world.workspace.private_path(first(world)))


@damages("example lists")
def an_example_list_is_shortened(world, edit_json):
    edit_json(world.root / world.workspace.private_path(first(world)), examples=list(world.rows(0).ids[1:]))


@damages("example lists")
def an_example_list_names_a_row_that_is_gone(world, edit_json):
    listed = sorted([*world.rows(0).ids, "0" * 64])
    edit_json(world.root / world.workspace.private_path(first(world)), examples=listed)


@damages("example lists")
def an_example_list_is_no_list(world, edit_json):
    world.workspace.objects.write(world.workspace.private_path(first(world)), b"[1]")


@damages("current model")
def the_models_weights_are_changed(world, edit_json):
    edit_json(world.root / "models/v0001.json", weights={})


@damages("current model")
def the_model_file_is_missing(world, edit_json):
    (world.root / "models/v0001.json").unlink()


@damages("older models")
def an_older_model_is_put_back(world, edit_json):
    earlier = world.workspace.objects.read("models/v0001.json")
    world.forget(world.rows(0).subjects[0])
    world.workspace.objects.write("models/v0001.json", earlier)


@damages("older models")
def a_model_that_never_was_is_there(world, edit_json):
    world.workspace.objects.write("models/v0009.json", b"{}")


@damages("partitions")
def a_partition_is_damaged(world, edit_json):
    path = world.root / part_path("data/shard=002")
    path.write_bytes(path.read_bytes()[:-9])


@damages("partitions")
def a_partition_is_missing(world, edit_json):
    (world.root / part_path("data/shard=002")).unlink()


@damages("partitions")
def the_held_out_rows_are_missing(world, edit_json):
    (world.root / part_path("data/eval")).unlink()


@damages("partitions")
def a_copy_of_rows_is_left(world, edit_json):
    world.workspace.objects.write("data/shard=001/copy.parquet", encode_partition(world.rows(1)))


@damages("partitions", "held-out cache")
def a_row_is_trained_on_and_held_out(world, edit_json):
    one, held = world.rows(1), world.rows(None)
    rows = sorted(zip(held.ids, held.images, held.labels, held.subjects, strict=True))
    rows.append((one.ids[0], one.images[0], one.labels[0], one.subjects[0]))
    write_partition(world.workspace.objects, "data/eval", rows=ShardRows(*zip(*sorted(rows), strict=True)))


@damages("keyed partition", "example lists", "shard caches")
def a_row_is_in_another_shard(world, edit_json):
    one, two = world.rows(1), world.rows(2)
    subject = one.subjects[0]
    move(world, "data/shard=001", one.without(subject))
    people = [row for row in zip(one.ids, one.images, one.labels, one.subjects, strict=True) if row[3] == subject]
    people += zip(two.ids, two.images, two.labels, two.subjects, strict=True)
    move(world, "data/shard=002", ShardRows(*zip(*sorted(people), strict=True)))


@damages("row content")
def an_image_is_changed(world, edit_json):
    rows = world.rows(1)
    move(world, "data/shard=001", replace(rows, images=(b"another", *rows.images[1:])))


@damages("row content", "shard caches")
def a_label_is_no_class(world, edit_json):
    rows = world.rows(1)
    image, subject = rows.images[0], rows.subjects[0]
    yak = (world.workspace.example_hash(image=image, label="yak", subject=subject), image, "yak", subject)
    others = list(zip(rows.ids, rows.images, rows.labels, rows.subjects, strict=True))[1:]
    rows = ShardRows(*zip(*sorted([yak, *others]), strict=True))
    move(world, "data/shard=001", rows)
    world.workspace.objects.write_json(world.workspace.private_path(world.component(1)), {"examples": list(rows.ids)})


@damages("suppressed subjects")
def rows_of_a_forgotten_subject_are_put_back(world, edit_json):
    rows = world.rows(1)
    world.forget(rows.subjects[0], "drop")
    move(world, "data/shard=001", rows)


@damages("held-out cache")
def the_cache_is_truncated(world, edit_json):
    path = world.root / eval_cache.LOGITS_PATH
    path.write_bytes(path.read_bytes()[:-1])


@damages("held-out cache")
def the_cache_keeps_a_row_that_is_gone(world, edit_json):
    kept = {path: world.workspace.objects.read(path) for path in world.workspace.objects.list("cache/eval")}
    world.forget("held-1")
    world.workspace.objects.write(eval_cache.CONSTANTS_PATH, kept[eval_cache.CONSTANTS_PATH])


@damages("held-out cache")
def the_cache_lacks_a_row(world, edit_json):
    cache = eval_cache.load(world.workspace)
    eval_cache.save(world.workspace, cache.without_rows(cache.ids[:1]))


@damages("held-out cache")
def the_cache_has_another_label(world, edit_json):
    cache = eval_cache.load(world.workspace)
    eval_cache.save(world.workspace, replace(cache, labels_B=(cache.labels_B + 1) % 3))


@damages("held-out cache")
def the_cache_keeps_a_dropped_components_logits(world, edit_json):
    cache = eval_cache.load(world.workspace)
    eval_cache.save(world.workspace, cache.with_component("gone", np.zeros(cache.base_BC.shape)))


@damages("held-out cache")
def an_unknown_cache_is_there(world, edit_json):
    world.workspace.objects.write("cache/eval/other.safetensors", b"personal")


@damages("shard caches")
def a_cache_keeps_a_row_that_is_gone(world, edit_json):
    path = world.cache_path(1)
    kept = path.read_bytes()
    world.forget(world.rows(1).subjects[0], "retrain")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(kept)


@damages("shard caches")
def a_dropped_shards_cache_is_put_back(world, edit_json):
    world.forget(world.rows(1).subjects[0], "drop")
    world.fill_cache(1)


@damages("shard caches")
def a_shards_cache_is_truncated(world, edit_json):
    path = world.cache_path(1)
    path.write_bytes(path.read_bytes()[:-1])


@damages("shard caches")
def there_is_a_cache_of_no_shard(world, edit_json):
    world.workspace.objects.write("cache/shard=009/constants.safetensors", world.cache_path(1).read_bytes())


@damages("shard caches")
def an_unknown_file_lies_beside_a_cache(world, edit_json):
    world.workspace.objects.write("cache/shard=001/other.bin", b"personal")


@damages("receipts")
def a_receipt_is_changed(world, edit_json):
    world.forget(world.rows(0).subjects[0], "drop")
    edit_json(world.root / "receipts/q0.json", guarantee="fresh_retrain")


@damages("receipts")
def a_receipt_is_signed_but_is_not_the_ledgers(world, edit_json):
    receipt = world.forget(world.rows(0).subjects[0], "drop")
    world.workspace.save_receipt("q0", {**receipt, "guarantee": "fresh_retrain"})


@damages("receipts")
def a_receipt_is_missing(world, edit_json):
    world.forget(world.rows(0).subjects[0], "drop")
    (world.root / "receipts/q0.json").unlink()


@damages("receipts")
def a_receipt_of_nothing_is_there(world, edit_json):
    world.workspace.save_receipt("q9", {"status": "done"})


@damages("receipts")
def a_subject_was_not_suppressed(world, edit_json):
    receipt = {"id": "q7"}
    world.workspace.ledger.add_request(RemovalRequest("q7", "5f", "drop"))
    world.workspace.ledger.complete_request("q7", receipt=receipt, suppress=False)
    world.workspace.save_receipt("q7", receipt)


@damages("open requests")
def a_removal_was_asked_for_only(world, edit_json):
    world.workspace.ledger.add_request(RemovalRequest("q7", "5f", "drop"))


@damages("temporary files")
def a_half_written_file_is_left(world, edit_json):
    (world.root / "data/shard=001/.part-0.parquet.00ff.tmp").write_bytes(b"personal")


@damages("temporary files")
def a_stranger_is_there(world, edit_json):
    world.workspace.objects.write("export/people.parquet", b"personal")


@damages("edits")
def an_edit_is_changed(world, edit_json):
    path = world.root / edit_path(world.edit("ada"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@damages("edits")
def an_edit_lost_its_private_file(world, edit_json):
    (world.root / edit_private_path(world.edit("ada"))).unlink()


@damages("edits")
def an_edits_image_is_another(world, edit_json):
    path = edit_private_path(world.edit("ada"))
    side = world.workspace.objects.read_json(path)
    side["images"][0]["content"] = "AAAA"
    edit_json(world.root / path, images=side["images"])


@damages("edits")
def an_edit_is_of_somebody_forgotten(world, edit_json):
    gone = world.rows(1).subjects[0]
    world.forget(gone, "drop")
    world.edit(gone)


@damages("edits")
def an_edit_outlived_the_one_it_was_learnt_beside(world, edit_json):
    world.edit("ada", beside=("f" * 64,))


@damages("locators")
def a_locator_lost_its_weights(world, edit_json):
    (world.root / locator_path(world.locator("ada"))).unlink()


@damages("locators")
def a_locator_knows_somebody_forgotten(world, edit_json):
    gone = world.rows(1).subjects[0]
    world.forget(gone, "drop")
    world.locator("ada", gone)


@damages("leftover edits")
def an_edit_is_left_that_no_model_names(world, edit_json):
    world.edit("ada", publish=False)


@damages("leftover edits")
def parts_of_a_locator_are_left(world, edit_json):
    world.workspace.objects.write("locators/training/episodes-00000.safetensors", b"personal")


def publish(world, components):
    world.workspace.ledger.add_model(Composition.uniform(world.composition.base, list(components)), reason="test")
    gone = set(world.workspace.component_ids()) - components
    for component in gone:
        world.workspace.delete_component(component)
    world.workspace.objects.delete("models/v0001.json")
    write_model(world.workspace, world.workspace.ledger.current_model())
    eval_cache.keep_components(world.workspace, components)
    world.workspace.write_manifest()


def move(world, directory, rows):
    write_partition(world.workspace.objects, directory, rows=rows)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_by_its_check(world, edit_json, name):
    assert world.failed() == {}
    damage, expected = DAMAGE[name]
    damage(world, edit_json)
    failed = world.failed()
    assert set(failed) == expected, failed
    for detail in failed.values():
        assert len(detail) > 40
        assert "could not be examined" not in detail


def save_record(world, *, kind, started_s, run_id):
    record = {"kind": kind, "started_s": started_s, "jobs": [{"run_id": run_id, "spans": []}]}
    world.workspace.objects.write_json(run_path(f"{kind}-{run_id}"), record)


@damages("run records")
def a_record_from_before_a_removal_is_saved_late(world, edit_json):
    run = world.workspace.ledger.reservations()[0].run_id
    world.forget(world.rows(0).subjects[0], "drop")
    save_record(world, kind="train", started_s=time.time(), run_id=run)


@damages("run records")
def a_record_is_no_record(world, edit_json):
    world.workspace.objects.write(run_path("1"), b"[]")


@damages("late results")
def a_result_from_before_a_removal_is_committed_late(world, edit_json):
    ledger = world.workspace.ledger
    ledger.reserve("late", shard=0, attempt=7, plan=world.plan_of_training(), admit=lambda _: None)
    world.forget(world.rows(0).subjects[0], "retrain")
    ledger.commit("late", component="f" * 64)


def test_a_removal_keeps_the_record_of_its_own_attempt(world):
    """Also where it takes up an attempt that an interrupted removal of the same shard had reserved."""
    ledger = world.workspace.ledger
    ledger.reserve("taken-up", shard=0, attempt=7, plan=world.plan_of_training(), admit=lambda _: None)
    world.forget(world.rows(0).subjects[0], "retrain")
    save_record(world, kind="forget", started_s=time.time(), run_id="taken-up")
    save_record(world, kind="train", started_s=0.0, run_id=ledger.reservations()[-1].run_id)
    assert world.failed() == {}
    save_record(world, kind="forget", started_s=time.time() - 3600, run_id="taken-up")
    assert set(world.failed()) == {"run records"}


def test_every_check_can_fail():
    assert set().union(*(names for _, names in DAMAGE.values())) == set(CHECKS)


def test_a_sound_workspace_passes_every_check(world):
    for subject, mode in (
        (world.rows(0).subjects[0], "drop"),
        (world.rows(1).subjects[0], "retrain"),
        ("held-0", "auto"),
    ):
        world.forget(subject, mode)
        found = checks(world.workspace, num_shards=3, classes=("cat", "dog", "eel"))
        assert [check.name for check in found] == list(CHECKS)
        assert all(check.ok and len(check.detail) > 5 for check in found), world.failed()


def test_verification_changes_nothing(world):
    before = {path: path.read_bytes() for path in world.root.rglob("*") if path.is_file()}
    world.failed()
    assert {path: path.read_bytes() for path in before} == before


def test_details_hold_no_subject(world):
    subjects = {name for shard in (None, 0, 1, 2) for name in world.rows(shard).subjects}
    a_row_is_in_another_shard(world, None)
    rows_of_a_forgotten_subject_are_put_back(world, None)
    assert not any(subject in detail for detail in world.failed().values() for subject in subjects)


def test_another_number_of_shards_or_classes_is_found(world):
    def failed(num_shards, classes):
        return {c.name for c in checks(world.workspace, num_shards=num_shards, classes=classes) if not c.ok}

    assert {"partitions", "keyed partition"} <= failed(4, ("cat", "dog", "eel"))
    assert {"row content", "held-out cache"} <= failed(3, ("cat", "dog"))


def test_nothing_raises_on_a_wreck(world):
    for path in world.root.rglob("*"):
        if path.is_file() and not path.name.startswith("ledger.db"):
            path.write_bytes(b"\0\xff")
    failed = set(world.failed())
    assert {"manifest", "recipe", "components", "current model", "partitions", "held-out cache"} <= failed


def test_nothing_raises_on_a_broken_ledger(world):
    with sqlite3.connect(world.root / "ledger.db") as connection:
        connection.execute("UPDATE entries SET payload = '{'")
    assert {"ledger chain", "recipe", "components", "current model", "leftover components"} <= set(world.failed())


def test_a_training_that_never_finished_has_no_model(world, monkeypatch):
    monkeypatch.setattr(type(world.workspace.ledger), "current_model", lambda self: None)
    failed = world.failed()
    assert {"current model", "components"} <= set(failed)
    assert "privshard train" in failed["current model"]
    assert "leftover components" not in failed
