"""The methods a recipe may name, each with the options it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from privshard.api.recipe_errors import did_you_mean, input_error, shown
from privshard.core.errors import InputError


class MethodOptions(BaseModel):
    """Options of one method; every default is the method's documented one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TangentOptions(MethodOptions):
    """The linearized transformer: how many of its last blocks move besides the head."""

    blocks: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default=1, description="a whole number of last blocks, 1 or more, or all"
    )


class HeadOptions(MethodOptions):
    """The classifier alone; nothing to choose."""


METHODS: Mapping[str, type[MethodOptions]] = {"tangent": TangentOptions, "head": HeadOptions}


def method_options(name: object, given: Mapping[str, object]) -> dict[str, JsonValue]:
    """The options of method `name` with its defaults filled in.

    Raises InputError for a method or an option that does not exist and for a value out of range.

    >>> method_options("tangent", {})
    {'blocks': 1}
    """
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(
            f"method.name: expected one of {', '.join(METHODS)}, got {shown(name)}.",
            remedy=did_you_mean(str(name), list(METHODS)),
        )
    model = METHODS[name]
    unknown = [key for key in given if key not in model.model_fields]
    if unknown:
        raise InputError(
            f"method.{unknown[0]}: unknown key for the method {name}.",
            remedy=did_you_mean(str(unknown[0]), list(model.model_fields), prefix="method."),
        )
    try:
        return model.model_validate(dict(given)).model_dump()
    except ValidationError as error:
        raise input_error(error, model=model, prefix="method") from None
