"""The YAML of recipes: read without YAML 1.1's surprises, written so that it reads back the same."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from privshard.core.errors import InputError

_FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_PATH_KEYS = (("data", "path"), ("public", "path"), ("base", "weights"), ("model", "weights"), ("teacher", "weights"))
_NAMED_WEIGHTS = ("embedded", "pretrained", "random")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: 1e-5 is a number, `yes` and `010` and dates are texts; keys occur once."""

    yaml_implicit_resolvers: Mapping = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is no text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} occurs twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes the texts which `_Loader` alone would take for numbers."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str, *, source: str) -> Any:
    """The value that `text` writes; InputError says where in `source` it cannot be read."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(
            f"{source}{where}: not readable as YAML: {problem}.", remedy="Quote texts that hold : # or brackets."
        ) from None


def dump_yaml(value: Any) -> str:
    """`value` as YAML, keys in their given order; `parse_yaml` gives it back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a recipe file, its relative paths made absolute against the file's folder."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"recipe: expected a readable YAML file, got {path} ({reason}).") from None
    values = parse_yaml(text, source=str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of keys such as 'shards: 4', got a {type(values).__name__}.")
    return anchored(values, path.parent)


def override(values: Mapping[str, Any], assignment: str, *, option: str = "--set") -> dict[str, Any]:
    """`values` with one `a.b=value` applied; the value is read as YAML. option: what messages call its origin.

    >>> override({"privacy": {"delta": 1e-6}}, "privacy.epsilon=3")
    {'privacy': {'delta': 1e-06, 'epsilon': 3}}
    """
    key, equals, text = assignment.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise InputError(f"{option}: expected KEY=VALUE, got {assignment!r}.", remedy=f"Write it as in {option} key=3.")
    return _assigned(values, names, parse_yaml(text, source=f"{option} {key.strip()}"), assignment)


def anchored(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`values` with every relative path in it made absolute against `folder`; URIs and names stay."""
    result = dict(values)
    for section, key in _PATH_KEYS:
        inner = result.get(section)
        given = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(given, str) and given and given not in _NAMED_WEIGHTS and "://" not in given:
            absolute = os.path.abspath(os.path.join(folder, os.path.expanduser(given)))
            result[section] = {**inner, key: absolute}  # pyright: ignore[reportGeneralTypeIssues]
    return result


def _assigned(values: Mapping[str, Any], names: list[str], value: Any, assignment: str) -> dict[str, Any]:
    name, rest = names[0], names[1:]
    if not rest:
        return {**values, name: value}
    inner = values.get(name)
    if inner is not None and not isinstance(inner, Mapping):
        raise InputError(f"--set {assignment}: {name} is not a mapping in this recipe but {inner!r}.")
    return {**values, name: _assigned(inner or {}, rest, value, assignment)}
