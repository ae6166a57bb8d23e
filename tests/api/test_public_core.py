"""A core from public rows: where it is named, that nothing removes it, and which rows are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_digits import people, recipe_values, write_people

from privshard.api import constants, forget, plan_training, predict, train, verify
from privshard.api.composed import displacements
from privshard.api.edit_target import open_target
from privshard.api.methods import make_method
from privshard.api.public_core import load_recipe_base
from privshard.api.recipe import Recipe
from privshard.api.setup import Setup
from privshard.api.worker import open_base
from privshard.composition.inference import ComposedModel
from privshard.core.errors import InputError
from privshard.data.images import image_batches
from privshard.models.base import CORE
from privshard.store.public_parts import load_public_parts
from privshard.store.workspace import Workspace

CLASSES = tuple("0123456789")


def nobody(rows):
    return [{**row, "subject": None} for row in rows]


@pytest.fixture
def public(tmp_path) -> Path:
    return write_people(tmp_path / "public.parquet", nobody(people(num_people=4)))


@pytest.fixture(scope="module")
def _once(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("core")
    public = write_people(home / "public.parquet", nobody(people(num_people=4)))
    values = recipe_values(
        write_people(home / "people.parquet"),
        public={"path": str(public)},
        base={"head": "public"},
        privacy={"epsilon": None},
        insecure_seed=3,
    )
    train(Recipe(**values), workspace=str(home / "workspace"))
    return home


@pytest.fixture
def cored(_once, tmp_path) -> Path:
    """A workspace of two shards around a core."""
    return shutil.copytree(_once / "workspace", tmp_path / "cored")


def test_the_core_is_named_wherever_the_model_is(cored):
    with Workspace.open(cored) as ws:
        setup = Setup.load(ws)
        assert setup.public is not None
        digest = setup.public["digest"]
        assert (setup.base.public, setup.base.head) == (digest, "public")
        arrays = load_public_parts(ws.objects, digest)
        assert {name for name in arrays if not name.startswith(CORE)} == {"head.weight", "head.bias"}
        assert ws.objects.read_json("manifest.json")["public"]["digest"] == digest
        assert ws.objects.read_json("models/v0001.json")["public"] == digest
    assert setup.public["num_rows"] == 8  # the test rows are left out
    assert np.sqrt(np.square(arrays["head.weight"]).mean()) == pytest.approx(0.02, rel=1e-4)
    found = verify(str(cored))
    assert found["ok"], [check for check in found["checks"] if not check["ok"]]
    (cored / "public" / f"{digest}.safetensors").unlink()
    failed = [check["name"] for check in verify(str(cored))["checks"] if not check["ok"]]
    assert failed == ["public parts"]


def test_predictions_are_core_plus_average(cored, tmp_path):
    image = next(people())["image"]["bytes"]
    (tmp_path / "one.png").write_bytes(image)
    found = predict(str(cored), [str(tmp_path / "one.png")])["predictions"][0]["probabilities"]
    with Workspace.open(cored) as ws:
        setup, model = Setup.load(ws), ws.ledger.current_model()
        base = open_base(setup.base, None, digest=setup.base_digest, objects=ws.objects)
        plain = make_method(setup.method, base.view)
        each = [ws.load_component(name)[1] for name in model.composition.components]
        around = make_method(setup.method, base.view, core=base.core)
        parts = displacements(ws, model.composition, method=around, device="cpu")
    total = {name: core + sum(torch.from_numpy(item[name]) for item in each) / 2 for name, core in base.core.items()}
    pixels = next(iter(image_batches([image], transform=base.transform, batch_size=1)))
    expected = plain.logits(plain.encode(pixels), total)
    assert list(found.values()) == pytest.approx(torch.softmax(expected, 1)[0].tolist(), abs=1e-5)
    torch.testing.assert_close(ComposedModel(around, model=base.view.model, parts=parts)(pixels), expected)
    with open_target(str(cored), model=None) as target:
        assert target.point is not None
        for name, tensor in total.items():
            torch.testing.assert_close(target.point[name], tensor)


def test_dropping_every_shard_leaves_the_core(cored, tmp_path):
    (tmp_path / "one.png").write_bytes(next(people())["image"]["bytes"])
    before = load_core(cored)
    left = 2
    for person in range(6):
        if left:
            forget(str(cored), subject=f"person-{person:02d}", mode="drop")
            with Workspace.open(cored) as ws:
                model = ws.ledger.current_model()
                assert model is not None
                left = len(model.composition.components)
    assert left == 0
    assert load_core(cored).keys() == before.keys()
    assert all(np.array_equal(array, load_core(cored)[name]) for name, array in before.items())
    assert verify(str(cored))["ok"]
    found = predict(str(cored), [str(tmp_path / "one.png")])["predictions"][0]
    assert found["probability"] > 0.3  # one class of ten by the core alone; a base would give about 0.1
    receipts = [json.loads(path.read_text()) for path in (cored / "receipts").glob("*.json")]
    assert all("not removable" in receipt["statement"] for receipt in receipts)


def load_core(workspace: Path) -> dict[str, np.ndarray]:
    with Workspace.open(workspace) as ws:
        public = Setup.load(ws).public
        assert public is not None
        return load_public_parts(ws.objects, public["digest"])


def test_a_retrained_shard_starts_at_the_core_again(cored):
    forget(str(cored), subject="person-00", mode="retrain")
    found = verify(str(cored))
    assert found["ok"], [check for check in found["checks"] if not check["ok"]]


def test_the_plan_says_what_is_not_protected(make_recipe, public, workspace):
    recipe = make_recipe(public={"path": str(public)})
    found = plan_training(recipe, workspace=workspace)
    assert "8 row(s) that are said to be public" in found["privacy"]["statement"]
    assert found["public"]["core"]
    assert not found["public"]["head"]
    plain = plan_training(make_recipe(), workspace=workspace)
    assert plain["public"] is None
    assert "Public:" not in plain["privacy"]["statement"]
    for key in ("noise", "cost"):
        assert found[key] == plain[key]  # free of charge
    assert found["base"]["digest"] != plain["base"]["digest"]


def test_the_core_is_a_function_of_the_rows_as_a_set(make_recipe, public, tmp_path):
    rows = nobody(people(num_people=4))
    shuffled = write_people(tmp_path / "shuffled.parquet", [*rows[::-1], rows[0]])
    digests = [
        load_recipe_base(make_recipe(public={"path": str(path)}, method={"name": "head"}), CLASSES)[0].digest
        for path in (public, shuffled)
    ]
    assert digests[0] == digests[1]


def test_rows_that_name_people_are_refused(make_recipe, tmp_path):
    named = write_people(tmp_path / "named.parquet", num_people=4)
    with pytest.raises(InputError, match=r"public.path: expected rows that name nobody, but .*named.parquet, row 0"):
        load_recipe_base(make_recipe(public={"path": str(named)}), CLASSES)
    with pytest.raises(InputError, match=r"public.path: expected rows that name nobody"):
        load_recipe_base(make_recipe(public={"path": str(named), "subject": "who"}), CLASSES)
    stated = make_recipe(public={"path": str(named), "stated_public": True}, method={"name": "head"})
    told = []
    parts = load_recipe_base(stated, CLASSES, on_progress=told.append)[1]
    assert next(news.stage for news in told if news.done == news.total) == "encode public rows"
    assert told[-1].stage == "learn from public rows"
    assert parts is not None
    assert parts.facts["stated_public"]


def test_rows_that_teach_nothing_are_refused(make_recipe, public, tmp_path):
    recipe = make_recipe(public={"path": str(public)})
    with pytest.raises(InputError, match=r"row \d+: expected one of the 2 classes, got '2'"):
        load_recipe_base(recipe, ("0", "1"))
    held = write_people(tmp_path / "held.parquet", [{**row, "split": "test"} for row in nobody(people(num_people=1))])
    with pytest.raises(InputError, match="at least one row to learn from, got none"):
        load_recipe_base(make_recipe(public={"path": str(held)}), CLASSES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"public": {"core": False}}, r"public.core: expected public.path beside it, got none"),
        ({"base": {"head": "public"}}, r"base.head: expected public.path beside public, got none"),
        ({"public": {"path": "p", "core": False}}, r"public.core: expected true, or base.head public"),
        (
            {"public": {"path": "p"}, "method": {"name": "full"}},
            r"linear in what it learns \(tangent, head\), got full",
        ),
        ({"public": {"path": "p"}, "base": {"head": "public"}, "method": {"name": "gift"}}, r"for the method gift"),
    ],
)
def test_sections_that_disagree_are_refused(make_recipe, changes, words):
    with pytest.raises(InputError, match=words):
        make_recipe(**changes)


def test_recipes_without_public_rows_keep_their_digest(make_recipe):
    plain = make_recipe()
    deciding = plain._deciding()
    assert "public" not in deciding
    assert "head" not in deciding["base"]
    assert make_recipe(base={"head": "orthogonal"}).changed_keys(plain) == ("base.head",)


def test_a_core_is_learnt_by_the_loss_of_the_shards():
    exact = constants.public_optimization("tangent", num_classes=9)
    assert constants.public_optimization("head", num_classes=10).params.loss == "square"
    assert constants.public_optimization("head", num_classes=10, loss="cross_entropy").params.loss == "cross_entropy"
    assert constants.public_optimization("tangent", num_classes=9, loss="square") == exact


def test_a_public_path_that_is_none_is_called_so(make_recipe, tmp_path, workspace):
    with pytest.raises(InputError, match=r"^public\.path: expected a Parquet file or a folder of them"):
        train(make_recipe(public={"path": str(tmp_path / "nope.parquet")}), workspace=workspace)
