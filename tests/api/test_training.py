"""Training from a recipe: resuming whatever was interrupted, refusing before anything is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tiny_digits import people, write_people

from privshard.api import facts, plan_training, train
from privshard.core.errors import BudgetError, InputError, ResourceError
from privshard.privacy import plan as plan_module
from privshard.store import disk
from privshard.store.ledger import Ledger
from privshard.store.workspace import Workspace


def runs(workspace):
    with Workspace.open(workspace) as ws:
        return {(run.shard, run.attempt): run.state for run in ws.ledger.reservations()}


def ids(result):
    return [item["id"] for item in result["components"]]


def left_behind(workspace, keys_dir):
    keys = list(keys_dir.rglob("*.json"))
    return Path(workspace).exists() or keys


def test_the_second_training_returns_what_is_there(make_recipe, workspace, workers):
    first = train(make_recipe(), workspace=workspace)
    again = train(make_recipe(), workspace=workspace)
    assert ids(again) == ids(first)
    assert again["metrics"] == first["metrics"]
    assert workers == [(0, 0), (1, 0)]


def test_speed_settings_are_no_other_recipe(make_recipe, workspace, workers):
    train(make_recipe(), workspace=workspace)
    train(make_recipe(execution={"micro_batch": 7}), workspace=workspace)
    assert len(workers) == 2


def test_a_worker_that_raises_costs_nothing_and_the_others_are_kept(make_recipe, workspace, workers):
    workers.fail[0] = ResourceError("Out of memory.", remedy="Buy some.")
    with pytest.raises(ResourceError, match=r"Shard 0: Out of memory\. Buy some\."):
        train(make_recipe(), workspace=workspace)
    assert runs(workspace) == {(0, 0): "voided", (1, 0): "committed"}
    workers.fail.clear()
    result = train(make_recipe(), workspace=workspace)
    assert workers == [(0, 0), (1, 0), (0, 1)]
    assert runs(workspace) == {(0, 0): "voided", (1, 0): "committed", (0, 1): "committed"}
    assert result["privacy"]["epsilon"] <= 8


def test_several_failures_are_told_in_one(make_recipe, workspace, workers):
    workers.fail = {shard: InputError(f"Bad {shard}.") for shard in range(2)}
    with pytest.raises(InputError, match=r"Shard 0: Bad 0\. \(1 other shards failed too\.\)"):
        train(make_recipe(), workspace=workspace)


def test_an_interrupt_gives_open_reservations_back_and_keeps_what_is_done(make_recipe, workspace, workers):
    workers.fail[1] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(shards=3), workspace=workspace)
    assert runs(workspace) == {(0, 0): "committed", (1, 0): "voided", (2, 0): "voided"}
    workers.fail.clear()
    train(make_recipe(shards=3), workspace=workspace)
    assert workers == [(0, 0), (1, 0), (1, 1), (2, 1)]


def test_a_whole_component_that_the_ledger_was_not_told_of_is_adopted(
    make_recipe, workspace, workers, killed, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", lambda *_, **__: (_ for _ in ()).throw(killed()))
        with pytest.raises(killed):
            train(make_recipe(), workspace=workspace)
    assert runs(workspace) == {(0, 0): "reserved", (1, 0): "voided"}
    with Workspace.open(workspace) as ws:
        (written,) = ws.component_ids()
    result = train(make_recipe(), workspace=workspace)
    assert ids(result)[0] == written
    assert workers == [(0, 0), (1, 1)]
    assert runs(workspace) == {(0, 0): "committed", (1, 0): "voided", (1, 1): "committed"}


def test_a_half_written_component_counts_as_spent(make_recipe, workspace, workers, killed, monkeypatch):
    from privshard.store import components

    with monkeypatch.context() as patch:
        patch.setattr(components, "save_tensors", lambda *_, **__: (_ for _ in ()).throw(killed()))
        with pytest.raises(killed):
            train(make_recipe(), workspace=workspace)
    result = train(make_recipe(), workspace=workspace)
    assert runs(workspace)[0, 0] == "reserved"
    assert runs(workspace)[0, 1] == "committed"
    assert result["privacy"]["epsilon"] > 8
    with Workspace.open(workspace) as ws:
        assert sorted(ws.component_ids()) == sorted(ids(result))


def test_what_was_spent_without_a_result_may_exhaust_the_limit(make_recipe, workspace, killed, monkeypatch):
    from privshard.store import components

    recipe = make_recipe(privacy={"planned_retrains": 0})
    with monkeypatch.context() as patch:
        patch.setattr(components, "save_tensors", lambda *_, **__: (_ for _ in ()).throw(killed()))
        with pytest.raises(killed):
            train(recipe, workspace=workspace)
    with pytest.raises(BudgetError, match="have spent epsilon 8 of 8"):
        train(recipe, workspace=workspace)


def test_classes_must_be_public_under_differential_privacy(make_recipe, workspace, keys_dir):
    with pytest.raises(InputError, match=r"data\.classes: expected the list of classes"):
        train(make_recipe(data={"classes": None}), workspace=workspace)
    assert not left_behind(workspace, keys_dir)
    result = train(make_recipe(data={"classes": None}, privacy={"epsilon": None}), workspace=workspace)
    assert result["privacy"]["epsilon"] is None


@pytest.mark.filterwarnings("ignore:shards:UserWarning")  # the noise may leave 1 of 24, which is worth a warning
def test_a_noisy_count_is_taken_once_charged_and_kept(make_recipe, workspace, killed, monkeypatch):
    counts, real = [], plan_module.noisy_count

    def noisy_count(true, **kwargs):
        counts.append(true)
        return real(true, **kwargs)

    monkeypatch.setattr(plan_module, "noisy_count", noisy_count)
    recipe = make_recipe(data={"nominal_examples": None, "nominal_subjects": None})
    with monkeypatch.context() as patch:
        patch.setattr(facts, "keep_setup", lambda *_: (_ for _ in ()).throw(killed()))
        with pytest.raises(killed):
            train(recipe, workspace=workspace)
    result = train(recipe, workspace=workspace)
    assert counts == [24]
    with Workspace.open(workspace) as ws:
        held = ws.ledger.noisy_count()
        plan = ws.ledger.reservations()[0].plan
    assert held is not None
    assert plan.count_noise_multiplier == held.noise_multiplier == 20
    assert plan.expected_units == pytest.approx(plan.sample_rate * held.nominal / 2)
    known = train(make_recipe(), workspace=workspace + "-known")
    assert result["privacy"]["epsilon"] <= 8
    with Workspace.open(workspace + "-known") as ws:
        assert ws.ledger.reservations()[0].plan.noise_multiplier < plan.noise_multiplier
    assert "count" in result["privacy"]["statement"]
    assert known["privacy"]["statement"] != result["privacy"]["statement"]


def test_a_plan_leaves_a_count_open_and_writes_nothing(make_recipe, workspace, keys_dir):
    planned = plan_training(make_recipe(data={"nominal_examples": None}), workspace=workspace)
    assert planned["noise"]["expected_units"] is None
    assert plan_training(make_recipe(), workspace=workspace)["noise"]["expected_units"] == 12
    assert not left_behind(workspace, keys_dir)


def test_more_shards_than_people_warns(make_recipe, workspace):
    with pytest.warns(UserWarning, match="most shards will be empty"):
        plan_training(make_recipe(shards=7, privacy={"unit": "subject"}), workspace=workspace)


def test_an_empty_shard_trains_on_noise_and_keeps_its_weight(make_recipe, workspace):
    result = train(make_recipe(shards=7), workspace=workspace)
    assert 0 in result["confidential"]["num_examples"]
    assert len(set(ids(result))) == 7
    with Workspace.open(workspace) as ws:
        model = ws.ledger.current_model()
        assert model is not None
        assert set(model.composition.weights.values()) == {1 / 7}
        empty = result["confidential"]["num_examples"].index(0)
        _, arrays = ws.load_component(ids(result)[empty])
    assert any(array.any() for array in arrays.values())


def test_another_recipe_is_refused_and_names_the_keys(make_recipe, workspace):
    train(make_recipe(), workspace=workspace)
    for verb in (train, plan_training):
        with pytest.raises(InputError, match=r"belongs to another recipe; it differs in privacy\.epsilon, shards"):
            verb(make_recipe(shards=3, privacy={"epsilon": 2.0}), workspace=workspace)


def test_training_again_after_a_removal_brings_nothing_back(make_recipe, workspace):
    from privshard.api import forget

    train(make_recipe(), workspace=workspace)
    forget(workspace, subject="person-00", mode="drop")
    result = train(make_recipe(), workspace=workspace)
    assert len(result["components"]) == 1
    assert sum(n or 0 for n in result["confidential"]["num_examples"]) < 24


@pytest.mark.parametrize("first_failure", [0, 3, 9, 15])
def test_a_full_disk_leaves_no_half_made_workspace(make_recipe, workspace, keys_dir, monkeypatch, first_failure):
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > first_failure:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "fsync", fsync)
        with pytest.raises((ResourceError, OSError)) as caught:
            train(make_recipe(), workspace=workspace)
    assert "No space left" in str(caught.value)
    assert not left_behind(workspace, keys_dir)
    assert train(make_recipe(), workspace=workspace)["model"] == "v0001"


def test_a_full_disk_while_training_is_resumed(make_recipe, workspace, monkeypatch):
    from privshard.api import shards

    real = Workspace.save_component

    def save(self, record, arrays, **kwargs):
        if record.shard == 1:
            raise ResourceError("No space left on device.")
        real(self, record, arrays, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(shards.Workspace, "save_component", save)
        with pytest.raises(ResourceError, match="No space left"):
            train(make_recipe(), workspace=workspace)
    result = train(make_recipe(), workspace=workspace)
    assert runs(workspace) == {(0, 0): "committed", (1, 0): "reserved", (1, 1): "committed"}
    assert result["model"] == "v0001"


def _broken(row, **changes):
    rows = list(people())
    rows[row] = {**rows[row], **changes}
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (_broken(5, image={"bytes": b"not an image", "path": None}), r"row 5.*Pillow can read, got 12 bytes"),
        (_broken(6, label="seven"), r"row 6.*expected a label of the 10 classes.*got 'seven'"),
        (_broken(7, split="somewhere"), r"row 7.*expected a split of"),
    ],
)
def test_a_bad_row_is_named_and_its_correction_trains_in_the_same_place(
    make_recipe, workspace, keys_dir, tmp_path, rows, message
):
    bad = write_people(tmp_path / "bad.parquet", rows)
    with pytest.raises(InputError, match=message):
        train(make_recipe(bad), workspace=workspace)
    assert not left_behind(workspace, keys_dir)
    assert train(make_recipe(), workspace=workspace)["model"] == "v0001"


def test_an_unknown_model_and_weights_of_another_are_refused_first(make_recipe, workspace, keys_dir, tmp_path):
    import torch
    from safetensors.torch import save_file

    with pytest.raises(InputError, match=r"base\.model: expected the name of a timm model, got 'deit_tiny_patch16_22'"):
        train(make_recipe(base={"model": "deit_tiny_patch16_22", "weights": "pretrained"}), workspace=workspace)
    save_file({"norm.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    other = {"model": "deit_tiny_patch16_224", "weights": str(tmp_path / "other.safetensors")}
    with pytest.raises(InputError, match=r"does not match the model, 150 names differ: blocks\.0"):
        train(make_recipe(base=other), workspace=workspace)
    with pytest.raises(InputError, match="found nothing at"):
        train(make_recipe(base={**other, "weights": str(tmp_path / "absent.safetensors")}), workspace=workspace)
    assert not left_behind(workspace, keys_dir)


def test_a_folder_with_other_things_in_it_is_never_deleted(make_recipe, workspace, tmp_path):
    Path(workspace).mkdir()
    (Path(workspace) / "thesis.txt").write_text("all of it")
    bad = write_people(tmp_path / "bad.parquet", _broken(0, label="x"))
    with pytest.raises(InputError):
        train(make_recipe(bad), workspace=workspace)
    assert (Path(workspace) / "thesis.txt").read_text() == "all of it"
