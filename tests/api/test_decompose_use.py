"""Recomposing, analysing and choosing a size; and a shard trained on a recomposed base."""

from __future__ import annotations

from dataclasses import replace

import jsonschema
import pytest
import torch
from safetensors.torch import save_file
from tiny_decompositions import VIT, decomposition, state_of, vit
from tiny_digits import people, write_people

from privshard.api import Recipe, analyse, forget, recompose, schemas, sizes, train, verify
from privshard.core.errors import InputError
from privshard.decomposition.files import write_decomposition
from privshard.models.build import model_of_file


@pytest.fixture
def place(tmp_path):
    write_decomposition(tmp_path / "d.safetensors", decomposition())
    return str(tmp_path / "d.safetensors")


@pytest.fixture
def letters(tmp_path):
    """A few digits under the tiny model's five classes."""
    rows = [{**row, "label": "abcde"[int(row["label"]) % 5]} for row in people(num_people=4)]
    return str(write_people(tmp_path / "letters.parquet", rows))


def test_a_shard_is_trained_and_forgotten_on_a_recomposed_base(place, tmp_path, make_recipe, workspace):
    made = recompose(place, out=str(tmp_path / "m.safetensors"), depth=2, components=4)
    jsonschema.validate(made, schemas.load("recompose"))
    recipe = make_recipe(base={"weights": made["out"]})
    trained = train(recipe, workspace=workspace)
    assert trained["base"]["name"] == VIT.model
    assert trained["metrics"]["num_rows"] == 8
    assert train(recipe, workspace=workspace)["components"] == trained["components"]
    assert forget(workspace, subject="person-00", mode="retrain")["status"] == "done"
    assert verify(workspace)["ok"]


def test_recipe_yaml_names_the_file_alone(place, tmp_path):
    recompose(place, out=str(tmp_path / "m.safetensors"))
    (tmp_path / "r.yaml").write_text("base: {weights: m.safetensors}\n")
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert recipe.base.model is None
    assert recipe.base.weights == str(tmp_path / "m.safetensors")
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "again.yaml").digest == recipe.digest


def test_free_and_tied_are_the_same_model(place, tmp_path):
    tied = recompose(place, out=str(tmp_path / "t.safetensors"), depth=5, components=2, mode="tied")
    free = recompose(place, out=str(tmp_path / "m.safetensors"), depth=5, components=2)
    again = recompose(tied["out"], out=str(tmp_path / "n.safetensors"))
    assert tied["stored"] < tied["parameters"] == free["parameters"] == free["stored"]
    one, two = (model_of_file(tmp_path / name)[0].state_dict() for name in ("m.safetensors", "n.safetensors"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert again["depths"] == [5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"components": 7}, "components: expected 1 to 6, which were trained, got 7"),
        ({"depth": 0}, "depth: expected at least 1, got 0"),
        ({"depth": [2, 2]}, r"depth: expected 1 number\(s\)"),
        ({"mode": "loose"}, "mode: expected free or tied, got 'loose'"),
        ({"out": "nowhere/m.safetensors"}, "out: expected a file in a folder that exists"),
    ],
)
def test_what_cannot_be_recomposed_is_refused(place, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        recompose(place, **{"out": str(tmp_path / "m.safetensors"), **given})
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("mode", ["free", "tied"])
def test_a_decomposition_is_not_overwritten_by_a_model_of_it(place, tmp_path, mode):
    before = open(place, "rb").read()  # noqa: SIM115
    (tmp_path / "link").symlink_to(place)
    for out in (place, str(tmp_path / "link")):
        with pytest.raises(InputError, match="expected another file than the decomposition itself"):
            recompose(place, out=out, mode=mode)
    (tmp_path / "decomposition.safetensors").write_bytes(before)
    with pytest.raises(InputError, match="expected another file"):
        recompose(str(tmp_path), out=str(tmp_path / "decomposition.safetensors"), mode=mode)
    assert open(place, "rb").read() == before  # noqa: SIM115


def test_a_path_that_is_none_is_called_by_its_own_name(tmp_path):
    absent = str(tmp_path / "absent")
    for use in (sizes, lambda path: recompose(path, out=str(tmp_path / "m.safetensors"))):
        with pytest.raises(InputError, match=r"Expected a finished decomposition at .*absent"):
            use(absent)
    with pytest.raises(InputError, match=r"^model: expected a safetensors file"):
        analyse(f"{absent}.safetensors")
    with pytest.raises(InputError, match=r"^model: .*Is a directory") as caught:
        analyse(str(tmp_path))
    assert "privshard recompose" in str(caught.value.remedy)


def test_a_damaged_decomposition_gives_no_model(place, tmp_path):
    data = bytearray(open(place, "rb").read())  # noqa: SIM115
    data[-1] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(bytes(data))
    with pytest.raises(InputError, match="its header tells another digest"):
        recompose(str(tmp_path / "bad.safetensors"), out=str(tmp_path / "m.safetensors"))
    assert not (tmp_path / "m.safetensors").exists()


def test_analysis_of_a_name_a_file_and_a_recomposed_model(place, tmp_path):
    recompose(place, out=str(tmp_path / "m.safetensors"))
    save_file({name: torch.from_numpy(a) for name, a in state_of(vit(6)).items()}, tmp_path / "w.safetensors")
    args = {**VIT.args, "depth": 6, "num_classes": 5}
    named = analyse(VIT.model, weights=str(tmp_path / "w.safetensors"), args=args, html=str(tmp_path / "t.html"))
    jsonschema.validate(named, schemas.load("analyse"))
    assert (tmp_path / "t.html").read_text().startswith("<!doctype html>")
    filed = analyse(str(tmp_path / "m.safetensors"))
    assert filed["stacks"][0]["r2"] == pytest.approx(named["stacks"][0]["r2"], abs=1e-4)
    assert analyse(VIT.model, weights="random", args=args)["stacks"][0]["depth"] == 6
    for beside in ({"weights": "random"}, {"args": {"depth": 3}}):
        with pytest.raises(InputError, match="expected a timm model's name beside weights or arguments"):
            analyse(str(tmp_path / "m.safetensors"), **beside)
    with pytest.raises(InputError, match="weights without it") as caught:
        analyse(str(tmp_path / "w.safetensors"))
    assert "--weights FILE" in str(caught.value.remedy)


def test_analysis_takes_a_swin_by_stages_and_refuses_what_has_no_stack():
    args = {"img_size": 56, "embed_dim": 24, "num_heads": (1, 2, 2, 2), "depths": (2, 2, 4, 2)}
    found = analyse("swin_tiny_patch4_window7_224", weights="random", args=args)
    assert [stack["depth"] for stack in found["stacks"]] == [2, 2, 4, 2]
    with pytest.raises(InputError, match="expected a transformer with blocks"):
        analyse("resnet10t", weights="random")
    with pytest.raises(InputError, match="expected blocks of equal shape"):
        analyse("twins_svt_small", weights="random")


def test_the_menu_measures_every_size(place, letters, tmp_path):
    told = []
    found = sizes(
        place,
        data=letters,
        split="all",
        depths=[1, 3],
        components=[2, 6],
        max_parameters=50_000,
        by="parameters",
        html=str(tmp_path / "s.html"),
        on_progress=told.append,
    )
    jsonschema.validate(found, schemas.load("sizes"))
    assert [(size["depths"], size["components"]) for size in found["sizes"]] == [([1], 2), ([1], 6), ([3], 2), ([3], 6)]
    assert [size["fits"] for size in found["sizes"]] == [size["parameters"] <= 50_000 for size in found["sizes"]]
    assert any(size["on_frontier"] for size in found["sizes"])
    assert found["data"]["num_rows"] == 16
    assert len(told) == 4
    assert (tmp_path / "s.html").exists()
    made = recompose(place, out=str(tmp_path / "m.safetensors"), depth=3, components=2)
    assert found["sizes"][2]["parameters"] == made["parameters"]
    unmeasured = sizes(place, depths=[1], components=[1])
    assert unmeasured["sizes"][0]["accuracy"] is None


def test_the_menus_accuracy_is_the_recomposed_models(place, letters, tmp_path):
    from privshard.data.images import image_batches
    from privshard.data.reader import read_rows

    found = sizes(place, data=letters, split="all", depths=[6], components=[6])
    recompose(place, out=str(tmp_path / "m.safetensors"))
    model, architecture = model_of_file(tmp_path / "m.safetensors")
    import timm.data

    config = timm.data.resolve_model_data_config(model) | {"input_size": (3, 32, 32)}
    transform = timm.data.create_transform(**config, is_training=False)
    rows = list(read_rows(letters))
    (images,) = image_batches([row.image for row in rows], transform=transform, batch_size=99)
    labels = torch.tensor([architecture.classes.index(row.label) for row in rows])
    expected = (model(images).argmax(dim=1) == labels).float().mean().item()
    assert found["sizes"][0]["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "beauty"}, "by: expected one of latency"),
        ({"split": "some"}, "split: expected eval, train or all"),
        ({"max_latency_ms": -1.0}, "budget: expected latency_ms above 0, got -1"),
        ({"max_memory_mb": 0.0}, "budget: expected memory_bytes above 0, got 0"),
    ],
)
def test_menus_that_make_no_sense(place, given, message):
    with pytest.raises(InputError, match=message):
        sizes(place, **given)


def test_sizes_of_one_depth_cost_the_same(place):
    found = sizes(place, depths=[2, 3, 2], components=[1, 2, 1])["sizes"]
    assert [(size["depths"], size["components"]) for size in found] == [([2], 1), ([2], 2), ([3], 1), ([3], 2)]
    assert [size["latency_ms"] for size in found[::2]] == [size["latency_ms"] for size in found[1::2]]


def test_rows_without_a_split_are_held_out_as_in_training(tmp_path):
    from privshard.api.decompose_use import _rows
    from privshard.data.example import example_rows
    from privshard.data.pixels import is_held_out

    whole = replace(decomposition(), architecture=replace(VIT, num_classes=10, classes=tuple("0123456789")))
    held_out = [row.image for row in example_rows() if is_held_out(row)]
    assert [row.image for row in _rows("embedded", "eval", whole)[0]] == held_out
    assert 0.05 < len(held_out) / 1797 < 0.15
    assert len(_rows("embedded", "train", whole)[0]) == 1797 - len(held_out)


def test_rows_of_other_classes_are_refused(place, tmp_path):
    path = write_people(tmp_path / "digits.parquet")
    with pytest.raises(InputError, match="expected rows of the model's 5 classes"):
        sizes(place, data=str(path), split="all")
