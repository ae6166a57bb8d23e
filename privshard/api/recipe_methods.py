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
    """The linearized transformer: how many of its last blocks move besides the head; "all" moves its embeddings too."""

    blocks: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default=1, description="a whole number of last blocks, 1 or more, or all (the stem too)"
    )


class HeadOptions(MethodOptions):
    """The classifier alone; nothing to choose."""


class FullOptions(MethodOptions):
    """Full fine-tuning of the non-linear network: which of its blocks move besides the head."""

    blocks: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default="all", description="a whole number of last blocks, 1 or more, or all (the stem too)"
    )


class LoraOptions(MethodOptions):
    """Low-rank factors beside linear layers, as Hugging Face peft makes them.

    seed: draws where the factors start, which is public. The defaults are peft's rank and alpha, on the layer that the
    paper of GIFT compares on.
    """

    rank: int = Field(default=8, ge=1, description="a whole number, 1 or more")
    alpha: float = Field(default=8.0, gt=0, description="a number above 0")
    targets: list[str] = Field(
        default=["attn.proj"], min_length=1, description="a list of linear layers of a block, such as attn.proj"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="a whole number, 0 or more")


class BitFitOptions(MethodOptions):
    """The biases of the blocks' linear layers; nothing to choose."""


class PromptsOptions(MethodOptions):
    """Deep visual prompts: how many tokens join the input of every block. seed: draws where they start."""

    tokens: int = Field(default=5, ge=1, description="a whole number, 1 or more")
    seed: int = Field(default=0, ge=0, lt=2**63, description="a whole number, 0 or more")


class GiftOptions(MethodOptions):
    """Residuals that a small generator makes of the pretrained weights, merged away after training.

    generator: compact, W (I + phi psi), or paca, a small transformer over the rows of W; clusters, depth and ffn_ratio
    are of the latter. sharing: how many layers share one generator. seed: draws where the parameters start, which is
    public.
    """

    generator: Literal["compact", "paca"] = Field(default="compact", description="compact or paca")
    rank: int = Field(default=16, ge=1, description="a whole number from 1 to the width of the layers")
    layers: list[str] = Field(
        default=["attn.proj"], min_length=1, description="a list of layers or patterns, such as attn.proj or mlp.fc*"
    )
    sharing: Literal["all", "kind", "block", "layer"] = Field(
        default="all", description="all, kind, block or layer: which layers share one generator"
    )
    clusters: int = Field(default=96, ge=1, description="a whole number, 1 or more")
    depth: int = Field(default=1, ge=1, description="a whole number of blocks, 1 or more")
    ffn_ratio: int = Field(default=4, ge=1, description="a whole number, 1 or more")
    seed: int = Field(default=0, ge=0, lt=2**63, description="a whole number, 0 or more")


METHODS: Mapping[str, type[MethodOptions]] = {
    "tangent": TangentOptions,
    "head": HeadOptions,
    "full": FullOptions,
    "lora": LoraOptions,
    "bitfit": BitFitOptions,
    "prompts": PromptsOptions,
    "gift": GiftOptions,
}


LINEAR_METHODS = ("tangent", "head")
"""Those that are linear in what they learn."""


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
