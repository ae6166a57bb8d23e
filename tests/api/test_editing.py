"""The verbs of editing on a real workspace and on a plain model file: what they change, refuse and restore."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_digits import people
from tiny_vits import tiny_vit

from privshard.api import budget, edit_applying, evaluate, forget, influence, predict, schemas, train, verify
from privshard.api.composed import summed
from privshard.api.edit_applying import edit_apply
from privshard.api.edit_exporting import edit_export
from privshard.api.edit_reverting import edit_revert
from privshard.api.edit_searching import edit_search
from privshard.api.edit_training import edit_train_locator
from privshard.core.errors import InputError
from privshard.data.images import image_batches
from privshard.editing.training import LocatorOptions
from privshard.models.plain import load_plain
from privshard.store.workspace import Workspace

ROWS = list(people(num_people=20, rows_each=10))
QUICK = LocatorOptions(episodes=4, batch=2, fit_steps=3, fit_batch=2, depth=1)


def check(result, name):
    jsonschema.validate(result, schemas.load(name))
    return result


@pytest.fixture
def picture(tmp_path):
    """row -> the file of its image, on disk."""

    def write(row: int) -> str:
        path = tmp_path / f"row{row}.png"
        path.write_bytes(ROWS[row]["image"]["bytes"])
        return str(path)

    return write


def wrong_label(predicted: str) -> str:
    return str((int(predicted) + 1) % 10)


def logits(place: str, images: list[str]) -> np.ndarray:
    found = predict(place, images)["predictions"]
    return np.array([list(item["probabilities"].values()) for item in found])


def label_of(place: str, image: str) -> str:
    return predict(place, [image])["predictions"][0]["label"]


@pytest.fixture
def ws(seeded_workspace) -> str:
    return str(seeded_workspace)


def test_an_edit_makes_its_image_right_and_reverting_restores_every_bit(ws, picture, tmp_path):
    images = [picture(row) for row in range(100, 106)]
    before, told = logits(ws, images), evaluate(ws)["metrics"]
    label = wrong_label(label_of(ws, images[0]))
    result = check(edit_apply(ws, images=images[:1], labels=[label], subjects=["ada"]), "edit_apply")
    assert (result["status"], result["success"]) == ("edited", 1.0)
    assert label_of(ws, images[0]) == label
    # all heads of the one linearized block: the rows of its qkv and the columns of its proj, and nothing else
    assert (result["editor"], result["keep"], result["places"]) == ("heads", 1.0, "attention:6")
    assert result["cost"]["num_neurons"] == 4 * 192
    arrays = load_file(Path(ws) / result["file"])
    assert {name.rpartition("/")[0] for name in arrays} == {f"blocks.6.attn.{part}.weight" for part in ("qkv", "proj")}
    assert not np.array_equal(logits(ws, images), before)
    assert verify(ws)["ok"]
    (found,) = check(influence(ws, html=str(tmp_path / "i.html")), "influence")["edits"]
    assert (found["id"], found["leave_one_out"]["accuracy"]) == (result["edit"], told["accuracy"])
    assert found["leave_one_out"]["mean_logit_shift"] > 0
    assert "Each edit" in (tmp_path / "i.html").read_text()
    back = check(edit_revert(ws, edits=[result["edit"][:8]]), "edit_revert")
    assert back["reverted"] == [result["edit"]]
    assert np.array_equal(logits(ws, images), before)
    assert evaluate(ws)["metrics"] == told
    with Workspace.open(ws) as opened:
        first, *_, last = opened.ledger.models()
        assert first.composition == last.composition
    assert not list(Path(ws).rglob(f"*{result['edit'][:16]}*"))
    assert verify(ws)["ok"]


def test_the_metrics_of_an_edited_model_are_those_of_a_fresh_evaluation(ws, picture):
    image = picture(100)
    result = edit_apply(ws, images=[image], labels=[wrong_label(label_of(ws, image))])
    (Path(ws) / "cache/eval/logits.safetensors").unlink()
    again = evaluate(ws)["metrics"]
    assert again["accuracy"] == result["metrics_after"]["accuracy"]
    assert again["negative_log_likelihood"] == pytest.approx(
        result["metrics_after"]["negative_log_likelihood"], rel=1e-5
    )


def test_edits_in_sequence_and_at_once_add_up(ws, picture):
    images = [picture(row) for row in (100, 110, 120)]
    labels = [wrong_label(label_of(ws, images[0]))]
    one = edit_apply(ws, images=images[:1], labels=labels)
    labels += [wrong_label(label_of(ws, image)) for image in images[1:]]
    two = edit_apply(ws, images=images[1:], labels=labels[1:])
    assert (one["status"], two["status"]) == ("edited", "edited")
    assert [label_of(ws, image) for image in images[1:]] == labels[1:]
    kept = label_of(ws, images[0]) == labels[0]
    assert kept == (not two["conflicts"])
    with Workspace.open(ws) as opened:
        first, middle, last = (item.composition for item in opened.ledger.models())
        base, half, whole = (summed(opened, item.weights) for item in (first, middle, last))
        only_two = summed(opened, first.adding(two["edit"]).weights)
    for name, array in whole.items():
        np.testing.assert_allclose(array, half[name] + only_two[name] - base[name], rtol=0, atol=1e-6)
    edit_revert(ws, edits=[one["edit"]])
    with Workspace.open(ws) as opened:
        left = summed(opened, opened.ledger.current_model().composition.weights)
    assert all(np.array_equal(left[name], array) for name, array in only_two.items())


def test_what_is_already_right_is_not_edited(ws, picture):
    image = picture(100)
    result = check(edit_apply(ws, images=[image], labels=[label_of(ws, image)]), "edit_apply")
    assert (result["status"], result["edit"]) == ("already_right", None)
    assert result["model_after"] == "v0001"


def test_what_cannot_be_learnt_changes_nothing(ws, picture):
    image = picture(100)
    label = wrong_label(label_of(ws, image))
    result = check(edit_apply(ws, images=[image], labels=[label], steps=1, lr=1e-9), "edit_apply")
    assert result["status"] == "not_learnt"
    assert verify(ws)["ok"]


def test_bad_input_is_refused(ws, picture):
    image = picture(100)
    now = label_of(ws, image)
    label = wrong_label(now)
    for values, message in (
        ({"labels": ["11"]}, "expected one of the 10 classes"),
        ({"labels": [label, label]}, "one label for every image"),
        ({"labels": [label], "keep": 1e-9}, "keeps at least one of 3 heads"),
        ({"labels": [label], "keep": 1e-9, "editor": "gradient"}, "keeps at least one of 1536 neurons"),
        ({"labels": [label], "editor": "none"}, "editor: expected one of heads, gradient, locator, rank-one"),
        ({"labels": [label], "editor": "heads", "places": "ffn:6"}, "expected places of kind attention"),
        ({"labels": [label], "editor": "locator"}, "expected a locator's file or digest for the editor locator"),
        ({"labels": [label], "editor": "heads", "locator": "f"}, "the editor heads reads none"),
        ({"labels": [label], "editor": "rank-one"}, "editor rank-one: expected a plain model"),
        ({"labels": [label], "unlabeled": "f"}, "unlabeled: expected images for the editor rank-one, and for no"),
        ({"labels": [label], "locator": "none"}, "locator: expected a file"),
        ({"labels": [label], "places": "ffn:0"}, "expected blocks 6 to 6"),
        ({"labels": [label], "subjects": ["a", "b"]}, "one for every image or none"),
        ({"images": [image, image], "labels": [label, now]}, "contradictory edits"),
        ({"images": ["missing.png"], "labels": [label]}, "expected a readable file"),
    ):
        with pytest.raises(InputError, match=message):
            edit_apply(ws, **{"images": [image], **values})
    edit_apply(ws, images=[image], labels=[label])
    with pytest.raises(InputError, match=r"contradictory edits: edit .* made the same image"):
        edit_apply(ws, images=[image], labels=[now])
    with pytest.raises(InputError, match="either ids of edits, or all"):
        edit_revert(ws)
    with pytest.raises(InputError, match="expected the id of one edit"):
        edit_revert(ws, edits=["zz"])


def test_an_edit_voids_the_statement_until_it_is_out(make_recipe, workspace, picture):
    train(make_recipe(), workspace=workspace)
    held = budget(workspace)
    image = picture(100)
    result = edit_apply(workspace, images=[image], labels=[wrong_label(label_of(workspace, image))], subjects=["ada"])
    void = budget(workspace)
    assert "no differential privacy for the composition: it holds 1 edit(s)" in void["statement"]
    assert void["workspace"]["epsilon_spent"] is None
    assert result["statement"] in void["statement"]
    receipt = check(forget(workspace, subject="ada", mode="drop"), "forget")["receipt"]
    assert "it holds" not in receipt["statement"]
    assert "no edit that is left was learnt from an image of the subject" in receipt["meaning"]
    after = budget(workspace)
    assert (after["statement"], after["workspace"]) == (held["statement"], held["workspace"])
    with pytest.raises(InputError, match="was forgotten and may not come back"):
        edit_apply(workspace, images=[image], labels=["1"], subjects=["ada"])
    assert verify(workspace)["ok"]


def test_a_locator_of_private_images_is_retired_with_its_subject(ws, picture):
    told = check(edit_train_locator(ws, options=QUICK), "edit_train_locator")
    assert told["private"]
    assert not (Path(ws) / "locators/training").exists()
    image = picture(100)
    label = wrong_label(label_of(ws, image))
    result = edit_apply(ws, images=[image], labels=[label], locator=told["locator"][:10], keep=0.5)
    assert result["locator"] == told["locator"]
    copy = Path(ws).parent / "copy.safetensors"
    copy.write_bytes((Path(ws) / told["file"]).read_bytes())
    done = forget(ws, subject="person-01", mode="drop")
    assert {"retire_locator", "drop_edit", "drop"} <= {step["action"] for step in done["plan"]}
    assert verify(ws)["ok"]
    with pytest.raises(InputError, match="it was retired"):
        edit_apply(ws, images=[image], labels=[wrong_label(label_of(ws, image))], locator=str(copy))
    with pytest.raises(InputError, match="keeps its locators itself"):
        edit_train_locator(ws, options=QUICK, out="elsewhere")


def test_a_method_without_linearized_blocks_cannot_be_edited(make_recipe, workspace, picture):
    train(make_recipe(method={"name": "head"}, insecure_seed=1), workspace=workspace)
    with pytest.raises(InputError, match="expected the method tangent"):
        edit_apply(workspace, images=[picture(0)], labels=["1"])


@pytest.fixture
def plain(tmp_path) -> str:
    """A plain model file: a tiny ViT of 5 classes on 224 pixels."""
    model = tiny_vit(dtype=torch.float32, img_size=224, embed_dim=192, depth=12, num_heads=3)
    path = tmp_path / "plain.safetensors"
    save_file({name: tensor.numpy() for name, tensor in model.state_dict().items()}, path)
    return str(path)


VIT = "vit_tiny_patch16_224"


def test_a_plain_model_keeps_its_edits_beside_it(plain, picture, tmp_path):
    image = picture(3)
    bytes_before = hashlib.sha256(Path(plain).read_bytes()).hexdigest()
    now = edit_apply(plain, images=[image], labels=["0"], model=VIT, steps=1, lr=1e-9)["images"][0]["before"]
    label = str((int(now) + 1) % 5)
    result = edit_apply(plain, images=[image], labels=[label], model=VIT, lr=1e-3, keep=0.5, places="ffn:8-10")
    check(result, "edit_apply")
    assert (result["status"], result["editor"], result["keep"]) == ("edited", "gradient", 0.5)
    with pytest.raises(InputError, match="contradictory"):
        edit_apply(plain, images=[image], labels=[now], model=VIT)
    assert hashlib.sha256(Path(plain).read_bytes()).hexdigest() == bytes_before
    out = tmp_path / "edited.safetensors"
    check(edit_export(plain, model=VIT, out=str(out)), "edit_export")
    changed = [name for name, array in load_file(plain).items() if not np.array_equal(array, load_file(out)[name])]
    assert changed
    assert all(".mlp.fc" in name and name.endswith("weight") for name in changed)
    same = edit_apply(str(out), images=[image], labels=[label], model=VIT)
    assert same["status"] == "already_right"
    check(edit_revert(plain, everything=True), "edit_revert")
    edit_export(plain, model=VIT, out=str(out))
    assert all(np.array_equal(array, load_file(out)[name]) for name, array in load_file(plain).items())


def test_heads_are_kept_whole_in_the_file_of_an_edit(plain, picture, monkeypatch):
    image = picture(3)
    now = edit_apply(plain, images=[image], labels=["0"], model=VIT, steps=1, lr=1e-9)["images"][0]["before"]
    label = str((int(now) + 1) % 5)
    result = check(edit_apply(plain, images=[image], labels=[label], model=VIT, keep=0.23, lr=2e-3), "edit_apply")
    assert (result["status"], result["editor"]) == ("edited", "heads")
    assert result["places"] == "attention:8,attention:9,attention:10"
    arrays = load_file(Path(plain + ".edits") / result["file"])
    heads = 0
    for block in (8, 9, 10):
        found = {part: arrays.get(f"blocks.{block}.attn.{part}.weight/index") for part in ("qkv", "proj")}
        if found["proj"] is not None:
            chosen = sorted(set(found["proj"] // 64))  # heads of 64
            rows = [part * 192 + head * 64 + at for part in range(3) for head in chosen for at in range(64)]
            assert found["qkv"].tolist() == rows
            assert found["proj"].tolist() == [head * 64 + at for head in chosen for at in range(64)]
            heads += len(chosen)
    assert heads == round(0.23 * 9)
    # an edit that was learnt in the presence of another goes with it
    learn = edit_applying.learn_edit
    monkeypatch.setattr(edit_applying, "learn_edit", lambda *a, **k: replace(learn(*a, **k), beside=True))
    other = edit_apply(plain, images=[picture(100)], labels=["0" if label != "0" else "1"], model=VIT, lr=2e-3)
    assert other["learnt_beside"] == [result["edit"]]
    assert edit_revert(plain, edits=[result["edit"]])["reverted"] == sorted([result["edit"], other["edit"]])


def test_a_rank_one_edit_is_a_component_too(plain, picture, tmp_path):
    images = [picture(3), picture(100)]
    now = edit_apply(plain, images=images[:1], labels=["0"], model=VIT, steps=1, lr=1e-9)["images"][0]["before"]
    label, rank_one = str((int(now) + 1) % 5), {"model": VIT, "editor": "rank-one"}
    folder = tmp_path / "general"
    folder.mkdir()
    for row in (20, 40):
        (folder / f"{row}.png").write_bytes(Path(picture(row)).read_bytes())
    result = edit_apply(plain, images=images[:1], labels=[label], unlabeled=str(folder), lr=0.1, **rank_one)
    assert (check(result, "edit_apply")["status"], result["editor"]) == ("edited", "rank-one")
    assert (result["places"], result["success"]) == ("ffn:8", 1.0)
    out = tmp_path / "edited.safetensors"
    edit_export(plain, model=VIT, out=str(out))
    before, after = load_file(plain), load_file(out)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["blocks.8.mlp.fc2.weight"]
    moved = after["blocks.8.mlp.fc2.weight"].astype(np.float64) - before["blocks.8.mlp.fc2.weight"]
    values = np.linalg.svd(moved, compute_uv=False)
    assert values[1] < 1e-3 * values[0]
    for changes, message in (
        ({"unlabeled": None}, "unlabeled: expected images for the editor rank-one"),
        ({"keep": 0.5}, "chooses no neurons"),
        ({"places": "ffn:7-8"}, "expected one feed-forward network"),
        ({"images": [images[1], picture(120)], "labels": [str((int(label) + 1) % 5)] * 2}, "got 2 that are wrong"),
    ):
        asked = {"images": images[1:], "labels": ["0"], "unlabeled": str(folder), **rank_one, **changes}
        with pytest.raises(InputError, match=message):
            edit_apply(plain, **asked)
    edit_revert(plain, everything=True)
    edit_export(plain, model=VIT, out=str(out))
    assert all(np.array_equal(array, load_file(out)[name]) for name, array in before.items())


def test_plain_models_that_do_not_load_are_errors(plain, picture, tmp_path):
    arrays = load_file(plain)
    broken = tmp_path / "broken.safetensors"
    for change, message in (
        ({name: a for name, a in arrays.items() if name != "blocks.3.mlp.fc1.weight"}, "does not match the model"),
        ({name: a for name, a in arrays.items() if name != "head.weight"}, "the weight of its head"),
        ({**arrays, "head.bias": arrays["head.bias"][1:]}, "does not match the model"),
    ):
        save_file(change, broken)
        with pytest.raises(InputError, match=message):
            edit_apply(str(broken), images=[picture(3)], labels=["1"], model=VIT)
    with pytest.raises(InputError, match="name its model: --model"):
        edit_apply(plain, images=[picture(3)], labels=["1"])
    with pytest.raises(InputError, match="only a workspace knows people"):
        edit_apply(plain, images=[picture(3)], labels=["1"], subjects=["ada"], model=VIT)


def test_the_search_plots_what_it_tried(plain, picture, tmp_path):
    rows = range(4)
    folder, plot = tmp_path / "labelled", tmp_path / "front.svg"
    base = load_plain(plain, model=VIT)
    batch = next(image_batches([ROWS[row]["image"]["bytes"] for row in rows], transform=base.transform, batch_size=4))
    told = [str(index) for index in base.view.model(batch).argmax(1).tolist()]
    assert len(set(told)) == 1
    for row in rows:
        label = told[row] if row < 2 else str((int(told[row]) + 1) % 5)
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{row}.png").write_bytes(Path(picture(row)).read_bytes())
    options = {"data": str(folder), "margin": 1.0, "steps": 1, "model": VIT, "group": 12, "max_groups": 1, "least": 2}
    found = edit_search(plain, plot=str(plot), **options)
    check(found, "edit_search")
    assert {item["places"].count(",") for item in found["candidates"]} == {11}
    assert len(found["candidates"]) == 2
    assert (found["groups"][0]["num_images"], found["num_sensitive"]) == (2, 2)
    assert "(chosen)" in plot.read_text()
    with pytest.raises(InputError, match="errors that come in groups of 99"):
        edit_search(plain, **{**options, "least": 99})
    with pytest.raises(InputError, match="expected labelled pictures"):
        edit_search(plain, model=VIT)
