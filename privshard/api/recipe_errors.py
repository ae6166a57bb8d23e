"""From pydantic's complaints to one InputError that names the key, what was expected and what came."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from privshard.api.recipe_refusals import REFUSED
from privshard.core.errors import InputError

REMEDY = "Correct the recipe, or override it with --set KEY=VALUE."
_MAX_SHOWN = 60
_MAX_PROBLEMS = 5


def input_error(error: ValidationError, *, model: type[BaseModel], prefix: str = "") -> InputError:
    """The InputError for everything that `model` found wrong.

    The first few problems are told, and how many more there are. What was expected is the description of the field. A
    validator that raises an InputError is quoted as it is.
    `prefix` is the dotted key under which `model` sits in the recipe.
    """
    found = error.errors(include_url=False)
    problems: dict[str, str] = {}
    hints: dict[str, None] = {}
    for item in found[:_MAX_PROBLEMS]:
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            problems.setdefault(cause.message, cause.message)
            if cause.remedy:
                hints[cause.remedy] = None
            continue
        key, holder, leaf = _walk(model, item["loc"])
        dotted = ".".join(part for part in (prefix, key) if part)
        if item["type"] in ("extra_forbidden", "invalid_key"):
            if str(leaf) in REFUSED:
                problems.setdefault(dotted, f"{dotted}: refused, because {REFUSED[str(leaf)]}")
                hints[f"Leave {dotted} out."] = None
                continue
            problems.setdefault(dotted, f"{dotted}: unknown key.")
            hints[_hint(model, holder, str(leaf), parent=dotted[: -len(str(leaf))])] = None
        else:
            expected = _expected(holder, str(leaf))
            problems.setdefault(dotted, f"{dotted}: expected {expected}, got {shown(item['input'])}.")
    if len(found) > _MAX_PROBLEMS:
        problems[""] = f"And {len(found) - _MAX_PROBLEMS} more."
    return InputError(" ".join(problems.values()), remedy=" ".join(hints) or REMEDY)


def shown(value: Any) -> str:
    """A value as the recipe would write it, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def did_you_mean(word: str, known: list[str], *, prefix: str = "") -> str:
    """A sentence that offers the known word nearest to `word`, or all of them when none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"Did you mean {prefix}{near[0]}?"
    return f"Known here: {', '.join(prefix + name for name in known) or 'no keys'}."


def _walk(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, type[BaseModel], int | str]:
    """(dotted key, model that holds it, last part), leaving out what pydantic appends for members of unions."""
    key = ""
    for place, part in enumerate(location):
        key = f"{key}.{part}" if key else str(part)
        inner = _section(model, str(part))
        if inner is None or place == len(location) - 1:
            index = location[place + 1] if len(location) > place + 1 else None
            return (f"{key}[{index}]" if isinstance(index, int) else key), model, part
        model = inner
    return key, model, ""


def _expected(model: type[BaseModel], leaf: str) -> str:
    section = _section(model, leaf)
    if section is not None:
        return f"a mapping with any of the keys {', '.join(section.model_fields)}"
    field = model.model_fields.get(leaf)
    return (field.description if field else None) or "another value"


def _hint(root: type[BaseModel], holder: type[BaseModel], word: str, *, parent: str) -> str:
    elsewhere = [dotted for dotted in _keys(root) if dotted.endswith(f".{word}")]
    if elsewhere:
        return f"Did you mean {elsewhere[0]}?"
    return did_you_mean(word, list(holder.model_fields), prefix=parent)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in model.model_fields:
        section = _section(model, name)
        if section is None:
            yield prefix + name
        else:
            yield from _keys(section, f"{prefix}{name}.")


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of field `name` where that field is itself a section."""
    field = model.model_fields.get(name)
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
