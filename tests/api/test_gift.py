"""From trained GIFT components to plain weights and back, to small files, and to maps that are scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_digits import recipe_values, write_people

from privshard.adaptation.gift.files import MERGED, read_header
from privshard.api import gift, gift_explain, gift_source, predict, schemas, train, verify
from privshard.api.recipe import Recipe
from privshard.api.setup import Setup
from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.data.reader import read_rows
from privshard.data.schema import Columns
from privshard.models.base import load_base
from privshard.store.workspace import Workspace

ARGS = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 3}
TRAINING = {"steps": 4, "sample_rate": 1.0, "lr": 0.05, "optimizer": "adam", "average_from": 1.0}


def _weights(path: Path, *, seed: int) -> Path:
    """A random public base in a file of its own."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **ARGS)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: (torch.randn(value.shape, generator=generator) * 0.2 + (name.endswith("norm.weight"))).numpy()
        for name, value in model.state_dict().items()
    }
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a base and a workspace of two GIFT components; its keys are insecure ones."""
    home = tmp_path_factory.mktemp("gift")
    recipe = Recipe(
        **recipe_values(
            write_people(home / "people.parquet"),
            base={
                "model": "vit_tiny_patch16_224",
                "args": ARGS,
                "weights": str(_weights(home / "base.safetensors", seed=0)),
            },
            method={"name": "gift", "rank": 3, "layers": ["attn.v", "attn.proj"]},
            privacy={"epsilon": None},
            training=TRAINING,
            insecure_seed=3,
        )
    )
    train(recipe, workspace=str(home / "w"))
    gift_explain.plant(str(home / "planted"), num=12, size=40, seed=0)
    return home


@pytest.fixture
def w(home) -> str:
    return str(home / "w")


@pytest.fixture
def images(home) -> list[str]:
    return [str(path) for path in sorted((home / "planted" / "images").glob("*/*.png"))]


def _components(workspace: str) -> tuple[str, ...]:
    with Workspace.open(workspace) as ws:
        return ws.ledger.current_model().composition.components


def _base(workspace: str):
    with Workspace.open(workspace) as ws:
        return load_base(Setup.load(ws).base)


def test_merged_weights_load_strictly_and_predict_as_the_workspace_does(w, images, tmp_path):
    merged = gift.merge(w, out=str(tmp_path / "m.safetensors"))
    jsonschema.validate(merged, schemas.load("gift_merge"))
    assert merged["max_logit_difference"] <= 1e-5
    assert merged["num_changed"] == 3 * 2 + 2
    model = timm.create_model(**merged["loads_into"]["arguments"]).eval()
    state = {name: torch.from_numpy(value) for name, value in load_file(tmp_path / "m.safetensors").items()}
    model.load_state_dict(state, strict=True)
    transform = _base(w).transform
    with torch.no_grad():
        logits = model(torch.stack([transform(Image.open(path).convert("RGB")) for path in images]))
    want = [list(item["probabilities"].values()) for item in predict(w, images)["predictions"]]
    np.testing.assert_allclose(torch.softmax(logits.double(), dim=1), want, rtol=0, atol=1e-5)


def test_the_header_says_what_was_merged_into_what(w, tmp_path):
    merged = gift.merge(w, out=str(tmp_path / "m.safetensors"))
    header = read_header(tmp_path / "m.safetensors")
    assert header is not None
    assert (header.format, header.base, header.method) == (MERGED, merged["base"]["digest"], "gift")
    assert set(header.sources) == set(_components(w))
    assert header.options["layers"] == ["attn.v", "attn.proj"]


def test_unmerging_gives_the_base_bit_for_bit(w, tmp_path):
    gift.merge(w, out=str(tmp_path / "m.safetensors"))
    back = gift.unmerge(str(tmp_path / "m.safetensors"), source=w, out=str(tmp_path / "b.safetensors"))
    jsonschema.validate(back, schemas.load("gift_unmerge"))
    assert (back["how"], back["exact"], back["bound"]) == ("base", True, 0.0)
    state = load_file(tmp_path / "b.safetensors")
    assert {name: value.tobytes() for name, value in state.items()} == {
        name: value.tobytes() for name, value in _base(w).state.items()
    }


def test_without_the_base_unmerging_is_within_its_bound(w, tmp_path, monkeypatch):
    gift.merge(w, out=str(tmp_path / "m.safetensors"))

    def gone(*args, **kwargs):
        raise ResourceError("no such file")

    monkeypatch.setattr(gift, "load_source_base", gone)
    back = gift.unmerge(str(tmp_path / "m.safetensors"), source=w, out=str(tmp_path / "b.safetensors"))
    assert back["how"] == "arithmetic"
    state, base = load_file(tmp_path / "b.safetensors"), _base(w).state
    error = max(float(np.abs(state[name].astype(np.float64) - base[name]).max()) for name in base)
    assert 0 <= error <= back["bound"] < 1e-5
    assert back["exact"] == (error == 0)


def test_merging_twice_is_refused_with_both_sides(w, tmp_path):
    gift.merge(w, out=str(tmp_path / "m.safetensors"))
    one, two = (name[:12] for name in _components(w))
    with pytest.raises(
        InputError, match=rf"to merge gift \({one}\) on base .* is merged already: gift \({one}, {two}\)"
    ):
        gift.merge(w, out=str(tmp_path / "x"), into=str(tmp_path / "m.safetensors"), component=one)
    assert not (tmp_path / "x").exists()


def test_merged_weights_without_their_header_are_another_base(w, tmp_path):
    gift.merge(w, out=str(tmp_path / "m.safetensors"))
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"was learnt on base .*, but .*plain.safetensors is base"):
        gift.merge(w, out=str(tmp_path / "x"), into=str(tmp_path / "plain.safetensors"))


def test_merging_into_another_base_is_refused_with_both_digests(w, tmp_path):
    other = _weights(tmp_path / "other.safetensors", seed=1)
    with Workspace.open(w) as ws:
        spec = Setup.load(ws).base
    wrong, right = load_base(replace(spec, weights=str(other))).digest, load_base(spec).digest
    with pytest.raises(InputError, match=rf"{right[:16]}, but .*other.safetensors is base \S+ {wrong[:16]}"):
        gift.merge(w, out=str(tmp_path / "x"), into=str(other))


def test_the_base_may_lie_elsewhere_now(w, home, tmp_path):
    copy = tmp_path / "moved.safetensors"
    copy.write_bytes((home / "base.safetensors").read_bytes())
    gift.merge(w, out=str(tmp_path / "a"))
    gift.merge(w, out=str(tmp_path / "b"), into=str(copy))
    one, other = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_an_exported_generator_merges_as_its_component_does(w, tmp_path):
    one, _ = _components(w)
    exported = gift.export(w, out=str(tmp_path / "g.safetensors"), component=one[:8])
    jsonschema.validate(exported, schemas.load("gift_export"))
    assert exported["num_parameters"] == 2 * 24 * 3
    assert (tmp_path / "g.safetensors").stat().st_size < 20_000
    gift.merge(w, out=str(tmp_path / "a.safetensors"), component=one)
    gift.merge(str(tmp_path / "g.safetensors"), out=str(tmp_path / "b.safetensors"))
    one_state, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(np.array_equal(one_state[name], other[name]) for name in one_state)
    back = gift.unmerge(str(tmp_path / "b.safetensors"), source=w, out=str(tmp_path / "c.safetensors"))
    assert back["exact"]


def test_unmerging_something_else_is_refused_with_both_sides(w, tmp_path):
    one, two = _components(w)
    gift.merge(w, out=str(tmp_path / "m.safetensors"))
    gift.export(w, out=str(tmp_path / "g.safetensors"), component=one)
    with pytest.raises(InputError, match=rf"is gift \({one[:12]}, {two[:12]}\) .* is gift \({one[:12]}\) on base"):
        gift.unmerge(str(tmp_path / "m.safetensors"), source=str(tmp_path / "g.safetensors"), out=str(tmp_path / "x"))


def test_a_file_that_was_changed_after_merging_is_not_unmerged(w, tmp_path):
    path = tmp_path / "m.safetensors"
    gift.merge(w, out=str(path))
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(bytes(data))
    with pytest.raises(VerificationError, match=r"expected base plus residual, but .* differs"):
        gift.unmerge(str(path), source=w, out=str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("component", "problem"), [("zz", "which the current model does not have"), ("", "the beginning of several")]
)
def test_a_component_that_is_not_one_is_refused(w, tmp_path, component, problem):
    with pytest.raises(InputError, match=problem):
        gift.merge(w, out=str(tmp_path / "x"), component=component)


def test_several_generators_do_not_make_one_file(w, tmp_path):
    with pytest.raises(InputError, match=r"has 2 components .* a file holds one"):
        gift.export(w, out=str(tmp_path / "x"))


def test_components_of_a_linearized_model_have_no_merged_weights(seeded_workspace, tmp_path):
    with pytest.raises(InputError, match=r"expected components in the weight space, got tangent in tangent space"):
        gift.merge(str(seeded_workspace), out=str(tmp_path / "x"))


def test_parameters_that_give_another_displacement_are_found(w, home, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(w, copy)
    assert verify(str(copy))["ok"]
    one, two = _components(w)
    (copy / "parameters" / f"{one}.safetensors").write_bytes((copy / "parameters" / f"{two}.safetensors").read_bytes())
    found = verify(str(copy))
    assert not found["ok"]
    assert any("expected parameters of digest" in check["detail"] for check in found["checks"] if not check["ok"])


def test_maps_are_drawn_and_scored_against_masks(w, images, home, tmp_path):
    out = {"png": str(tmp_path / "e.png"), "html": str(tmp_path / "e.html")}
    found = gift_explain.explain(w, images, masks=str(home / "planted" / "masks"), clusters=2, seeds=2, **out)
    assert Image.open(out["png"]).format == "PNG"
    assert "data:image/png" in Path(out["html"]).read_text()
    assert (found["png"], found["html"]) == (out["png"], out["html"])
    jsonschema.validate(found, schemas.load("gift_explain"))
    assert len(found["clusters"]) == 2
    assert found["components"] == list(_components(w))
    scores = found["localization"]
    assert scores["num_images"] == 12
    for name, count in (("trained", 2), ("untrained", 2), ("random", 2)):
        assert scores[name]["num_generators"] == count
        for key in ("pointing", "iou", "best_iou"):
            assert 0 <= scores[name][key]["mean"] <= 1
    assert scores["trained"]["iou"] != scores["untrained"]["iou"]
    json.dumps(found)


def test_boxes_score_like_the_rectangles_they_are(w, images, home, tmp_path):
    boxes = json.loads((home / "planted" / "boxes.json").read_text())
    (tmp_path / "masks").mkdir()
    for path in images:
        mask = np.zeros((40, 40), dtype=np.uint8)
        for left, top, right, bottom in boxes[Path(path).name]:
            mask[top:bottom, left:right] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / Path(path).name)
    one = gift_explain.explain(w, images, boxes=str(home / "planted" / "boxes.json"), seeds=1)
    other = gift_explain.explain(w, images, masks=str(tmp_path / "masks"), seeds=1)
    assert one["localization"] == other["localization"]


def test_without_masks_nothing_is_measured(w, images):
    assert gift_explain.explain(w, images[:1])["localization"] is None


def test_bad_masks_and_boxes_are_refused(w, images, home, tmp_path):
    (tmp_path / "masks").mkdir()
    explain, one = gift_explain.explain, images[:1]
    name = Path(one[0]).name
    with pytest.raises(InputError, match=r"expected a mask of .*; found none"):
        explain(w, one, masks=str(tmp_path / "masks"))
    Image.new("L", (20, 40)).save(tmp_path / "masks" / name)
    with pytest.raises(InputError, match=r"is \(20, 40\) pixels, .* is \(40, 40\)"):
        explain(w, one, masks=str(tmp_path / "masks"))
    Image.new("L", (40, 40)).save(tmp_path / "masks" / name)
    with pytest.raises(InputError, match=r"lies outside of what the model sees of the image, or is empty"):
        explain(w, one, masks=str(tmp_path / "masks"))
    for boxes, message in (
        ({}, "expected boxes of"),
        ({name: [[0, 0, 50, 10]]}, "expected \\[left, top, right, bottom\\] inside"),
        ({name: [[1, 2]]}, r"four numbers in .*, got \[1, 2\] of"),
        ({name: [[1, 2, "3", 4]]}, "four numbers"),
        ([], "expected image name"),
    ):
        (tmp_path / "boxes.json").write_text(json.dumps(boxes))
        with pytest.raises(InputError, match=message):
            explain(w, one, boxes=str(tmp_path / "boxes.json"))
    with pytest.raises(InputError, match="masks or boxes, got both"):
        explain(w, one, boxes="b.json", masks="m")
    with pytest.raises(InputError, match="at least one image"):
        explain(w, [])
    with pytest.raises(InputError, match="at least one cluster"):
        explain(w, one, clusters=0)
    with pytest.raises(InputError, match=r"expected at most the generator's 3, got 4"):
        explain(w, one, clusters=4)
    with pytest.raises(InputError, match=r"expected a readable file, got none.png"):
        explain(w, ["none.png"])
    with pytest.raises(InputError, match=r"boxes\.json: Expected an image that Pillow can read"):
        explain(w, [str(tmp_path / "boxes.json")])


def test_planting_writes_what_a_recipe_reads(home):
    root = home / "planted"
    assert len(list((root / "masks").glob("*.png"))) == 12
    rows = list(read_rows(str(root / "planted.parquet"), columns=Columns(split="split"), required=frozenset({"split"})))
    assert {row.label for row in rows} == {path.name for path in (root / "images").iterdir()}
    assert len(rows) == 12
    with pytest.raises(InputError, match=r"holds something already"):
        gift_explain.plant(str(root))


def test_a_source_knows_what_it_is_about(w):
    source = gift_source.open_source(w)
    assert sum(source.weights.values()) == pytest.approx(1.0)
    assert source.displacement is not None
    assert all(
        {"gift.all.phi", "gift.all.psi", "head.weight"} <= arrays.keys() for arrays in source.parameters.values()
    )
