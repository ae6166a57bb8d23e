"""Recipes as text: scalars without surprises, errors that say where, overrides."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privshard.api.recipe_yaml import dump_yaml, override, parse_yaml, read_recipe
from privshard.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("-.5", -0.5),
        ("12", 12),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("[a, 1, 2.5]", ["a", 1, 2.5]),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    parsed = parse_yaml(text, source="test")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text", ["yes", "010", "1e5", "1.5", "", "null", "x: y", "2024-01-01", "~", "1:30", "- a", "é"]
)
def test_texts_that_look_like_something_else_survive(text):
    assert parse_yaml(dump_yaml({"key": text}), source="test") == {"key": text}


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text("a1e.-:~ "),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1e", min_size=1), inner, max_size=3),
        max_leaves=5,
    )
)
def test_what_is_dumped_is_parsed_back(value):
    assert parse_yaml(dump_yaml({"key": value}), source="test") == {"key": value}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("shards: 1\nshards: 2\n", "line 2, column 1: not readable as YAML: the key shards occurs twice"),
        ("privacy: {epsilon: [\n", "not readable as YAML"),
        ("1: 2\n", "the key 1 is no text"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("- a\n- b\n", "expected a mapping of keys such as 'shards: 4', got a list"),
    ],
)
def test_unreadable_recipes_say_where_and_why(tmp_path, text, problem):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    assert problem in caught.value.message
    assert str(path) in caught.value.message


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yaml \(No such file"):
        read_recipe(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="Is a directory"):
        read_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_recipe(tmp_path / "binary.yaml")


def test_overrides_build_what_is_missing_and_leave_the_rest():
    values = {"privacy": {"delta": 1e-6}, "training": None}
    assert override(values, "privacy.epsilon=3") == {"privacy": {"delta": 1e-6, "epsilon": 3}, "training": None}
    assert override(values, "training.lr=.5")["training"] == {"lr": 0.5}
    assert override(values, "data.classes=[a, b]")["data"] == {"classes": ["a", "b"]}
    assert override(values, "base.args.img_size=32")["base"] == {"args": {"img_size": 32}}
    assert override(values, "data.path=a=b.parquet")["data"] == {"path": "a=b.parquet"}
    assert values == {"privacy": {"delta": 1e-6}, "training": None}


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("privacy.epsilon", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("privacy..epsilon=3", "expected KEY=VALUE"),
        ("shards=[", "not readable as YAML"),
        ("shards.x=3", "shards is not a mapping"),
    ],
)
def test_wrong_overrides_are_refused(assignment, problem):
    with pytest.raises(InputError, match=problem):
        override({"shards": 4}, assignment)
