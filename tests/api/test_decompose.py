"""`decompose` from recipe to file: phases, resumption, fits, teachers, and what it refuses."""

from __future__ import annotations

import errno
import json

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_decompositions import state_of
from tiny_digits import people, write_people

from privshard.api import DecomposeRecipe, decompose, decompose_run, decompose_worker, schemas
from privshard.core.errors import InputError, ResourceError
from privshard.decomposition.files import open_decomposition
from privshard.models.build import build_model
from privshard.runtime.shard_function import torch_threads
from privshard.training import encoding

ARGS = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def recipe(path=None, **changes) -> DecomposeRecipe:
    values = {
        "model": {"name": "vit_tiny_patch16_224", "args": ARGS},
        "components": [1, 2],
        "training": {"steps": 2, "batch_size": 8},
    }
    if path is not None:
        values["data"] = {"path": str(path), "classes": 10, "public": True}
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
    return DecomposeRecipe(**values)


@pytest.fixture
def public(tmp_path):
    """A few digits that name nobody."""
    rows = [{key: value for key, value in row.items() if key != "subject"} for row in people()]
    return write_people(tmp_path / "public.parquet", rows)


def weights_file(path, *, num_classes=10, **args):
    model = build_model("vit_tiny_patch16_224", {**ARGS, **args}, num_classes=num_classes)
    save_file({name: torch.from_numpy(array) for name, array in state_of(model).items()}, path)
    return path


def test_a_decomposition_is_made_once(public, tmp_path):
    told = []
    made = decompose(recipe(public), workspace=str(tmp_path / "d"), on_progress=told.append)
    jsonschema.validate(made, schemas.load("decompose"))
    assert [(phase["components"], phase["steps"]) for phase in made["phases"]] == [(1, 2), (3, 2)]
    assert made["data"]["num_train"] + made["data"]["num_eval"] == 32
    assert made["stacks"][0]["depth"] == 3
    assert "A base is public knowledge" in made["statement"]
    assert {news.stage for news in told} == {"decode", "components 1 to 1", "components 2 to 3"}
    assert not (tmp_path / "d" / "cache").exists()
    with open_decomposition(tmp_path / "d", check=True) as found:
        assert found.digest == made["digest"]
        assert found.architecture.classes == tuple("0123456789")
        assert found.facts["stated_public"] is True
        assert found.facts["data"] == made["data"]["digest"]
    again = decompose(recipe(public), workspace=str(tmp_path / "d"))
    assert {**again, "timing_s": 0} == {**made, "timing_s": 0}


def test_an_interrupted_decomposition_resumes_to_the_same_digest(public, tmp_path):
    made = decompose(recipe(public), workspace=str(tmp_path / "whole"))

    class Killed(BaseException):
        pass

    def kill(progress):
        if progress.stage == "components 2 to 3":
            raise Killed

    job_folder = tmp_path / "parts"
    job_folder.mkdir()
    (job_folder / "recipe.yaml").write_text(recipe(public).to_yaml())
    job = decompose_worker.DecomposeJob("x", str(job_folder), recipe(public).to_yaml(), recipe().flags())
    with pytest.raises(Killed), torch_threads(job.flags.threads):
        decompose_worker.run_decompose(job, None, kill)
    assert (job_folder / "phases" / "01.safetensors").exists()
    assert decompose(recipe(public), workspace=str(job_folder))["digest"] == made["digest"]


def test_another_recipe_or_a_foreign_folder_is_refused(public, tmp_path):
    decompose(recipe(public), workspace=str(tmp_path / "d"))
    with pytest.raises(InputError, match="belongs to another recipe"):
        decompose(recipe(public, seed=1), workspace=str(tmp_path / "d"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match=r"expected an empty folder or a decomposition, got .*thesis\.txt"):
        decompose(recipe(public), workspace=str(tmp_path / "mine"))
    with pytest.raises(InputError, match="expected a folder, got s3://x"):
        decompose(recipe(public), workspace="s3://x")


def test_rows_about_people_are_refused_unless_stated_public(tmp_path):
    path = write_people(tmp_path / "people.parquet")
    data = {"path": str(path), "public": False, "classes": 10}
    with pytest.raises(InputError, match=r"people\.parquet, row 0: names a subject"):
        decompose(recipe(data=data), workspace=str(tmp_path / "d"))
    stated = decompose(recipe(data={**data, "public": True}), workspace=str(tmp_path / "e"))
    assert stated["data"]["stated_public"] is True


def test_a_subject_column_cannot_be_hidden_by_naming_another(tmp_path):
    path = write_people(tmp_path / "people.parquet")
    data = {"path": str(path), "public": False, "classes": 10, "subject": "nobody"}
    with pytest.raises(InputError, match="names a subject"):
        decompose(recipe(data=data), workspace=str(tmp_path / "d"))
    data |= {"subject": "split", "split": None}
    with pytest.raises(
        InputError, match=r"data\.subject: expected one column that names subjects, got split beside sub"
    ):
        decompose(recipe(data=data), workspace=str(tmp_path / "e"))


def test_given_weights_are_fitted_with_their_residual(tmp_path):
    path = weights_file(tmp_path / "w.safetensors")
    made = decompose(
        recipe(model={"weights": str(path)}, method="least_squares", components=[3]), workspace=str(tmp_path / "d")
    )
    jsonschema.validate(made, schemas.load("decompose"))
    assert made["phases"] == []
    assert max(left[-1] for left in made["residuals"]["blocks"].values()) < 1e-6
    assert made["residuals"]["blocks"]["attn.qkv.weight"][0] > 0.1
    assert made["data"] is None


def test_all_at_once_is_one_phase(public, tmp_path):
    made = decompose(recipe(public, method="at_once"), workspace=str(tmp_path / "d"))
    assert [phase["components"] for phase in made["phases"]] == [3]


@pytest.mark.parametrize("compiled", [True, False])
def test_the_recipe_says_whether_blocks_are_compiled(public, tmp_path, monkeypatch, compiled):
    asked, train = [], decompose_worker.train_phases

    def eager(*given, compiled, **how):
        asked.append(compiled)
        return train(*given, **how)

    monkeypatch.setattr(decompose_worker, "train_phases", eager)
    monkeypatch.setattr(encoding, "_compiler", lambda: "cc")
    execution = {"compile": compiled, "device": "cpu"}
    decompose(recipe(public, components=[1], execution=execution), workspace=str(tmp_path / "d"))
    assert asked == [compiled]


def test_a_teacher_of_another_size_and_normalization_is_asked_with_its_own(public, tmp_path):
    path = weights_file(tmp_path / "t.safetensors", img_size=32)
    teacher = {"name": "vit_tiny_patch16_224", "args": {**ARGS, "img_size": 32}, "weights": str(path)}
    made = decompose(recipe(public, teacher=teacher), workspace=str(tmp_path / "d"))
    assert np.isfinite(made["phases"][-1]["loss"])
    with open_decomposition(tmp_path / "d") as found:
        assert found.facts["teacher"] == "vit_tiny_patch16_224"


def test_the_teacher_sees_the_same_image():
    model = build_model("vit_tiny_patch16_224", {**ARGS, "img_size": 32}, num_classes=10).eval()
    mine = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    theirs = {"mean": (0.4, 0.4, 0.4), "std": (0.2, 0.2, 0.2), "input_size": (3, 32, 32)}
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = (pixels - torch.tensor(mine["mean"]).view(3, 1, 1)) / torch.tensor(mine["std"]).view(3, 1, 1)
    found = decompose_worker._adapted(model, mine, theirs, "cpu")(seen)
    torch.testing.assert_close(found, model((pixels - 0.4) / 0.2), atol=1e-5, rtol=1e-4)


def test_a_teacher_with_other_classes_is_refused(public, tmp_path):
    path = weights_file(tmp_path / "t.safetensors", num_classes=7)
    teacher = {"name": "vit_tiny_patch16_224", "args": ARGS, "weights": str(path)}
    with pytest.raises(InputError, match="expected a teacher of the same 10 classes, got one of 7"):
        decompose(recipe(public, teacher=teacher), workspace=str(tmp_path / "d"))


def test_more_components_than_blocks_are_refused(public, tmp_path):
    with pytest.raises(InputError, match="expected at most 3 in all, the number of blocks, got 4"):
        decompose(recipe(public, components=[1, 3]), workspace=str(tmp_path / "d"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "least_squares"}, r"model\.weights: expected pretrained or a file beside method least_squares"),
        ({"model": {"weights": "pretrained"}}, r"model\.weights: expected random beside method phased"),
        ({"basis": {"polynomial": "fourier"}}, r"basis\.argument: expected unit beside"),
        ({"basis": {"polynomial": "hermite"}}, r"basis\.polynomial: expected chebyshev, legendre, taylor or fourier"),
        ({"components": []}, "components: expected a list of whole numbers"),
        ({"components": [1, 0]}, "components"),
        ({"training": {"steps": [1, 2, 3]}}, r"training\.steps: expected one number, or one for each of 2 phases"),
        ({"taecher": {}}, "taecher: unknown key. Did you mean teacher"),
    ],
)
def test_recipes_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        recipe(**changes)


def test_recipes_survive_their_yaml_and_anchor_paths(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "data: {path: x.parquet, classes: 3}\ntraining: {steps: [1, 2]}\ncomponents: [1, 2]\n"
    )
    loaded = DecomposeRecipe.load(tmp_path / "r.yaml", overrides=["basis.start=1", "teacher.temperature=2"])
    assert loaded.data.path == str(tmp_path / "x.parquet")
    assert loaded.data.classes == ("0", "1", "2")
    assert (loaded.basis.start, loaded.teacher.temperature, loaded.training.steps) == (1, 2.0, (1, 2))
    (tmp_path / "again.yaml").write_text(loaded.to_yaml())
    assert DecomposeRecipe.load(tmp_path / "again.yaml") == loaded
    assert loaded.digest == DecomposeRecipe.load(tmp_path / "again.yaml", overrides=["execution.device=cpu"]).digest


def test_the_same_on_ray(public, tmp_path):
    here = decompose(recipe(public), workspace=str(tmp_path / "here"))
    told = []
    there = decompose(
        recipe(public, ray={"address": "local", "gpus_per_shard": 0}),
        workspace=str(tmp_path / "there"),
        on_progress=told.append,
    )
    assert there["digest"] == here["digest"]
    assert json.loads((tmp_path / "there" / "result.json").read_text())["digest"] == here["digest"]


def test_what_fails_before_anything_is_learnt_leaves_nothing(public, tmp_path):
    place = tmp_path / "d"
    for wrong in ({"components": [1, 3]}, {"model": {"args": {"patch_size": 0}}}, {"data": {"classes": 3}}):
        with pytest.raises(InputError):
            decompose(recipe(public, **wrong), workspace=str(place))
        assert not place.exists()
    assert decompose(recipe(public), workspace=str(place))["components"] == 3


def test_a_place_that_cannot_be_written_is_a_missing_resource(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(decompose_run, "make_folder", refuse)
    with pytest.raises(ResourceError, match=r"Expected to use .*d, but: Permission denied"):
        decompose(recipe(), workspace=str(tmp_path / "d"))


def test_what_is_not_ours_stays_as_it_was(tmp_path):
    (tmp_path / "recipe.yaml").write_text("shards: 4\n")
    with pytest.raises(
        InputError, match=r"expected an empty folder or a decomposition, got .* with recipe\.yaml in it"
    ):
        decompose(recipe(), workspace=str(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_lost_or_replaced_file_is_made_again(public, tmp_path):
    made = decompose(recipe(public), workspace=str(tmp_path / "d"))
    path = tmp_path / "d" / "decomposition.safetensors"
    content = path.read_bytes()
    for spoil in (path.unlink, lambda: weights_file(path)):
        spoil()
        assert decompose(recipe(public), workspace=str(tmp_path / "d"))["digest"] == made["digest"]
        assert path.read_bytes() == content
