"""The recipe: its defaults, what it refuses and how it says so, its digest, its way through YAML."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from privshard.api.recipe import Recipe
from privshard.core.errors import InputError
from privshard.core.execution import ExecutionFlags
from privshard.core.privacy import PrivacyParams

EXAMPLE = """
data:     {path: people.parquet, subject: subject, label: label, split: split,
           classes: [cat, dog], nominal_examples: 1500}
base:     {model: deit_tiny_patch16_224, args: {}, weights: deit_tiny.safetensors, head_seed: 0}
method:   {name: tangent, blocks: 1}
shards:   8
privacy:  {epsilon: 3.0, delta: 1.0e-5, unit: subject, max_grad_norm: 1.0, planned_retrains: 2, epsilon_limit: 6.0}
training: {steps: 60, sample_rate: 0.5, lr: 0.5}
ray:      {address: local, gpus_per_shard: auto}
"""


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "recipes" / "people.yaml"
    path.parent.mkdir()
    path.write_text(EXAMPLE)
    return path


def test_the_empty_recipe_is_the_embedded_example(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert Recipe.load() == Recipe() == Recipe.load(empty)
    recipe = Recipe()
    assert recipe.data.path is None
    assert recipe.base.model is None
    assert recipe.base.weights == "embedded"
    assert (recipe.shards, recipe.privacy.epsilon, recipe.privacy.unit) == (4, 8.0, "example")
    assert recipe.method_spec().name == "tangent"
    assert recipe.method_spec().options == {"blocks": 1}
    assert recipe.private


def test_a_section_whose_keys_are_all_commented_out_has_its_defaults(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("privacy:\n  # epsilon: 3\nshards: 2\n")
    assert Recipe.load(path) == Recipe(shards=2)


def test_defaults_agree_with_the_nouns_of_core():
    assert Recipe().privacy_params() == PrivacyParams()
    assert Recipe().flags() == ExecutionFlags()


def test_the_documented_recipe_loads_with_paths_against_its_folder(example):
    recipe = Recipe.load(example)
    assert recipe.data.path == str(example.parent / "people.parquet")
    assert recipe.base.weights == str(example.parent / "deit_tiny.safetensors")
    assert recipe.data.classes == ("cat", "dog")
    assert recipe.privacy_params() == PrivacyParams(
        epsilon=3.0, delta=1e-5, unit="subject", planned_retrains=2, epsilon_limit=6.0
    )
    assert set(recipe.data.explicit_columns) == {"subject", "label", "split"}


def test_overrides_win_and_their_paths_are_against_the_current_folder(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load(
        example, overrides=["privacy.epsilon=2.5", "data.path=../other.parquet", "shards=2", "privacy.delta=1e-6"]
    )
    assert (recipe.privacy.epsilon, recipe.shards, recipe.privacy.delta) == (2.5, 2, 1e-6)
    assert recipe.data.path == str(tmp_path.parent / "other.parquet")
    assert recipe.privacy.epsilon_limit == 6.0
    assert Recipe.load(overrides=["privacy.epsilon=null"]).private is False
    assert Recipe.load(overrides=["method={name: head}"]).method.options == {}


@pytest.mark.parametrize("kept", ["s3://bucket/people.parquet", "/data/people.parquet"])
def test_uris_and_absolute_paths_stay(tmp_path, kept):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data: {{path: '{kept}'}}\n")
    assert Recipe.load(path).data.path == kept


def test_a_named_model_is_pretrained_unless_its_weights_are_named():
    assert Recipe(base={"model": "vit_tiny_patch16_224"}).base.weights == "pretrained"
    assert Recipe(base={"model": "vit_tiny_patch16_224", "weights": "/w.safetensors"}).base.weights == "/w.safetensors"


def test_labels_that_are_whole_numbers_become_texts():
    assert Recipe(data={"path": "x", "classes": [0, 1, "two"]}).data.classes == ("0", "1", "two")


@pytest.mark.parametrize(
    ("values", "message", "remedy"),
    [
        ({"privcy": {}}, "privcy: unknown key", "Did you mean privacy?"),
        ({"epsilon": 3}, "epsilon: unknown key", "Did you mean privacy.epsilon?"),
        ({"privacy": {"epsilom": 3}}, "privacy.epsilom: unknown key", "Did you mean privacy.epsilon?"),
        ({"privacy": {"zzz": 3}}, "privacy.zzz: unknown key", "Known here: privacy.epsilon, privacy.delta"),
        ({"privacy": {"epsilon": 0}}, "privacy.epsilon: expected a number above 0, or null", "got 0"),
        ({"privacy": {"epsilon": "3"}}, "privacy.epsilon: expected a number above 0", 'got "3"'),
        ({"privacy": {"epsilon": float("inf")}}, "privacy.epsilon: expected a number above 0", "got Infinity"),
        ({"privacy": {"delta": 1}}, "privacy.delta: expected a number between 0 and 1", "got 1"),
        ({"privacy": {"unit": "person"}}, "privacy.unit: expected example or subject", 'got "person"'),
        ({"privacy": {"accountant": "gdp"}}, "privacy.accountant: expected rdp, prv or pld", 'got "gdp"'),
        ({"privacy": {"planned_retrains": -1}}, "privacy.planned_retrains: expected a whole number", "got -1"),
        ({"privacy": {"epsilon": 3, "epsilon_limit": 2}}, "privacy.epsilon_limit: expected at least", "got 2"),
        ({"privacy": {"epsilon": None, "epsilon_limit": 2}}, "privacy.epsilon_limit: expected null", "got 2"),
        ({"privacy": 3}, "privacy: expected a mapping with any of the keys epsilon", "got 3"),
        ({"shards": 0}, "shards: expected a whole number, 1 or more", "got 0"),
        ({"shards": True}, "shards: expected a whole number, 1 or more", "got true"),
        ({"shards": 2.0}, "shards: expected a whole number, 1 or more", "got 2.0"),
        (
            {"method": {"name": "tangnt"}},
            'method.name: expected one of tangent, head, full, lora, bitfit, prompts, gift, got "tangnt"',
            "mean tangent?",
        ),
        ({"method": {"blocks": 0}}, "method.blocks: expected a whole number of last blocks", "got 0"),
        ({"method": {"blocks": "most"}}, "method.blocks: expected a whole number of last blocks", 'got "most"'),
        ({"method": {"blcks": 1}}, "method.blcks: unknown key for the method tangent", "Did you mean method.blocks?"),
        ({"method": {"name": "head", "blocks": 1}}, "method.blocks: unknown key for the method head", ""),
        ({"method": "head"}, "method: expected a mapping", 'got "head"'),
        ({"data": {"classes": ["a", "b"]}}, "data.classes: expected data.path beside it", "embedded example"),
        ({"data": {"label": "species"}}, "data.label: expected data.path beside it", "embedded example"),
        ({"data": {"path": "x", "classes": ["a", "b", "a"]}}, "data.classes: expected every label once, got a", ""),
        ({"data": {"path": "x", "classes": ["a"]}}, "data.classes: expected at least two labels, got 1", ""),
        ({"data": {"path": "x", "classes": ["a", True]}}, "data.classes[1]: expected a list of labels", "got true"),
        ({"data": {"path": "x", "label": "image"}}, "data: expected a different column for each key", "image, image"),
        (
            {"data": {"path": "x", "nominal_examples": 5, "nominal_subjects": 6}},
            "data.nominal_subjects: expected at most data.nominal_examples (5), got 6",
            "",
        ),
        ({"base": {"weights": "pretrained"}}, "base.model: expected the model", "Name a timm model"),
        ({"base": {"model": "m", "weights": "embedded"}}, "base.weights: expected pretrained", "leave base.model out"),
        ({"base": {"args": {"depth": 3}}}, "base.args: expected base.model beside it", ""),
        ({"base": {"head_std": 0}}, "base.head_std: expected a number above 0", "got 0"),
        ({"training": {"sample_rate": 1.5}}, "training.sample_rate: expected a number above 0, at most 1", "got 1.5"),
        ({"training": {"loss": "l2"}}, "training.loss: expected cross_entropy, square or null", 'got "l2"'),
        ({"execution": {"threads": 0}}, "execution.threads: expected a whole number, 1 or more, or auto", "got 0"),
        ({"execution": {"device": "gpu"}}, "execution.device: expected auto, cpu", 'got "gpu"'),
        ({"ray": {"address": "somewhere"}}, "ray.address: expected local, auto, none", 'got "somewhere"'),
        ({"ray": {"gpus_per_shard": 1.5}}, "ray.gpus_per_shard: expected auto, a fraction of one GPU", "got 1.5"),
        ({"insecure_seed": -1}, "insecure_seed: expected a whole number, 0 or more, or null", "got -1"),
    ],
)
def test_wrong_values_are_refused_by_key_expectation_and_value(values, message, remedy):
    with pytest.raises(InputError) as caught:
        Recipe(**values)
    assert message in caught.value.message
    assert remedy in str(caught.value)


def test_every_problem_is_named_at_once():
    with pytest.raises(InputError) as caught:
        Recipe(privacy={"epsilon": 0, "delta": 2}, shards=0, colour="red")
    for key in ("privacy.epsilon", "privacy.delta", "shards", "colour"):
        assert f"{key}:" in caught.value.message


@pytest.mark.parametrize("address", ["local", "auto", "none", "ray://head:10001", "10.0.0.1:6379", "[::1]:6379"])
def test_ray_addresses_that_are_understood(address):
    assert Recipe(ray={"address": address}).ray.address == address


def test_the_digest_covers_what_decides_the_result_and_nothing_else():
    digest = Recipe().digest
    assert len(digest) == 64
    assert Recipe(execution={"threads": 3, "micro_batch": 8}, ray={"address": "none"}).digest == digest
    changes = [
        {"data": {"path": "x"}},
        {"base": {"head_seed": 1}},
        {"method": {"blocks": 2}},
        {"shards": 5},
        {"privacy": {"epsilon": 7.0}},
        {"training": {"steps": 3}},
        {"insecure_seed": 0},
    ]
    assert len({digest, *(Recipe(**change).digest for change in changes)}) == len(changes) + 1


def test_changed_keys_name_the_difference():
    other = Recipe(shards=5, privacy={"delta": 1e-6}, method={"blocks": "all"}, ray={"address": "none"})
    assert Recipe().changed_keys(other) == ("method.blocks", "privacy.delta", "shards")
    assert Recipe().changed_keys(Recipe(execution={"dtype": "bfloat16"})) == ()


@pytest.mark.parametrize("overrides", [[], ["method.blocks=all", "privacy={epsilon: null, delta: 1e-7}"]])
def test_yaml_reads_back_as_the_same_recipe(example, tmp_path, overrides):
    for source in (None, example):
        recipe = Recipe.load(source, overrides=overrides)
        copy = tmp_path / "elsewhere" / "recipe.yaml"
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(recipe.to_yaml())
        again = Recipe.load(copy)
        assert again == recipe
        assert again.digest == recipe.digest
        assert again.data.explicit_columns == recipe.data.explicit_columns


def test_a_column_that_is_not_to_be_read_survives_yaml(tmp_path):
    recipe = Recipe(data={"path": "/x.parquet", "subject": None})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml").data.subject is None
    assert recipe.data.explicit_columns == ()


def test_a_recipe_is_frozen_and_crosses_processes():
    recipe = Recipe(shards=3)
    with pytest.raises(ValueError, match="frozen"):
        recipe.shards = 4
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_automatic_threads_are_the_processors_of_one_worker():
    assert Recipe(execution={"threads": "auto"}, ray={"cpus_per_shard": 3}).flags().threads == 3
    assert Recipe(execution={"threads": "auto"}, ray={"cpus_per_shard": 0.5}).flags().threads == 1
    assert Recipe(execution={"threads": "auto"}, ray={"address": "none"}).flags().threads >= 1
    assert Recipe(execution={"threads": 7}).flags().threads == 7


def test_recipes_load_without_the_heavy_libraries():
    code = (
        "import sys; from privshard.api.recipe import Recipe; Recipe().digest; "
        "heavy = {'torch', 'timm', 'ray', 'opacus', 'pyarrow', 'matplotlib', 'numpy'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_recipe_of_something_else_gets_a_short_answer():
    with pytest.raises(InputError, match=r"And 4 more\. Known here") as caught:
        Recipe(**{f"key{number}": 1 for number in range(9)})
    assert caught.value.message.count("unknown key") == 5
