"""The recipe of a decomposition: which model, which basis, how it learns, on which public data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from privshard.api.recipe_errors import input_error
from privshard.api.recipe_sections import ColumnName, Count, RaySection, Section
from privshard.api.recipe_yaml import anchored, dump_yaml, override, read_recipe
from privshard.core.digest import json_digest
from privshard.core.errors import InputError
from privshard.core.execution import ExecutionFlags
from privshard.decomposition.basis import ArgumentMap, Basis, Polynomial

_EXAMPLE_MODEL = "vit_tiny_patch16_224"
_EXAMPLE_ARGS: dict[str, JsonValue] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 2}
_EXAMPLE_COMPONENTS = (1, 1, 2, 2)
_NOT_DECIDING = {"execution", "ray"}
MAX_NAMELESS = 100_000


def _class_names(value: Any) -> Any:
    """A list of labels as texts; a whole number N as the labels 0 to N - 1."""
    if isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= MAX_NAMELESS:
        return tuple(str(index) for index in range(value))
    if not isinstance(value, list | tuple):
        return value
    return tuple(str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in value)


class ModelSection(Section):
    """The model to decompose. Without a name: a small one for the embedded example."""

    name: ColumnName = Field(default=_EXAMPLE_MODEL, description="the name of a timm vision transformer")
    args: dict[str, JsonValue] = Field(
        default=_EXAMPLE_ARGS, description="a mapping of arguments for timm.create_model"
    )
    weights: ColumnName = Field(default="random", description="random, pretrained or the path of a safetensors file")

    @model_validator(mode="before")
    @classmethod
    def _named_models_have_their_own_arguments(cls, value: Any) -> Any:
        return {"args": {}, **value} if isinstance(value, Mapping) and "name" in value else value


class BasisSection(Section):
    """The coefficients over depth; see `privshard.decomposition.basis.Basis`, which it becomes."""

    polynomial: Polynomial = Field(default="chebyshev", description="chebyshev, legendre, taylor or fourier")
    start: Literal[0, 1] = Field(default=0, description="0 or 1, the first function of the polynomial's family")
    argument: ArgumentMap = Field(default="symmetric", description="symmetric, unit or nodes")


class PublicDataSection(Section):
    """Public rows. Without a path: the embedded handwritten digits.

    A base is public knowledge: rows that name subjects are refused unless `public` says that they are public all the
    same. The subject column is always looked for.
    """

    path: ColumnName | None = Field(default=None, description="the path of a Parquet file or folder, or null")
    image: ColumnName = Field(default="image", description="the name of the column with the images")
    label: ColumnName = Field(default="label", description="the name of the column with the labels")
    subject: ColumnName = Field(default="subject", description="the name of a column that says whom a row is about")
    split: ColumnName | None = Field(default="split", description="a column that parts train from test rows, or null")
    classes: Annotated[tuple[ColumnName, ...], BeforeValidator(_class_names)] | None = Field(
        default=None, description="a list of labels, or a whole number N for the labels 0 to N - 1"
    )
    public: bool = Field(default=False, description="true where somebody vouches that all rows are public")


class TeacherSection(Section):
    """A model to learn from besides the labels: any timm model with the same classes. No name: none."""

    name: ColumnName | None = Field(default=None, description="the name of a timm model, or null for no teacher")
    args: dict[str, JsonValue] = Field(default={}, description="a mapping of arguments for timm.create_model")
    weights: ColumnName = Field(default="pretrained", description="pretrained or the path of a safetensors file")
    weight: float = Field(default=1.0, gt=0, description="a number above 0, the teacher's part of the loss")
    temperature: float = Field(default=1.0, gt=0, description="a number above 0")


class PhaseTrainingSection(Section):
    """How every phase is trained. crop, flip: augmentation; see `privshard.decomposition.batches.Augmentation`."""

    steps: Count | tuple[Count, ...] = Field(default=150, description="a whole number of steps, or one for each phase")
    batch_size: Count = Field(default=128, description="a whole number, 1 or more")
    lr: float = Field(default=1e-3, gt=0, description="a number above 0")
    warmup: float = Field(default=0.2, ge=0, lt=1, description="a fraction of the steps from 0, below 1")
    weight_decay: float = Field(default=0.05, ge=0, description="a number, 0 or more")
    clip: float = Field(default=1.0, gt=0, description="the largest gradient norm, above 0")
    crop: int = Field(default=0, ge=0, description="pixels that images are shifted by at most, 0 or more")
    flip: bool = Field(default=False, description="true to mirror half of the images")
    checkpoint_every: Count = Field(default=500, description="a whole number of steps, 1 or more")


class PlaceSection(Section):
    """Where it computes and how precisely; bit-equality needs the same device, threads and `compile`."""

    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$", description="auto, cpu, cuda, cuda:N or mps"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="float32 or bfloat16 (autocast)")
    threads: Count | Literal["auto"] = Field(default=1, description="a whole number, 1 or more, or auto")
    compile: bool | Literal["auto"] = Field(default="auto", description="auto, true or false")


class DecomposeRecipe(BaseModel):
    """What to decompose, and how. `DecomposeRecipe()` learns a small model of the embedded digits.

    method: phased trains `components[i]` more components in phase i, and only them; at_once trains all together;
    least_squares fits them to given weights, without data. embeddings, head: whether these train in every phase, each
    phase then keeping its own copy, or in the first alone.

    >>> DecomposeRecipe(components=[1, 2]).total
    3
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: ModelSection = ModelSection()
    basis: BasisSection = BasisSection()
    method: Literal["phased", "at_once", "least_squares"] = Field(
        default="phased", description="phased, at_once or least_squares"
    )
    components: tuple[Count, ...] = Field(
        default=_EXAMPLE_COMPONENTS, min_length=1, description="a list of whole numbers, the components each phase adds"
    )
    embeddings: Literal["every", "first"] = Field(default="every", description="every or first")
    head: Literal["every", "first"] = Field(default="every", description="every or first")
    data: PublicDataSection = PublicDataSection()
    teacher: TeacherSection = TeacherSection()
    training: PhaseTrainingSection = PhaseTrainingSection()
    execution: PlaceSection = PlaceSection()
    ray: RaySection = RaySection(address="none")
    seed: int = Field(default=0, ge=0, lt=2**63, description="a whole number, 0 or more")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise input_error(error, model=type(self)) from None

    @model_validator(mode="before")
    @classmethod
    def _lists_are_fixed(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        fixed = {**value}
        if isinstance(value.get("components"), list | int) and not isinstance(value.get("components"), bool):
            given = value["components"]
            fixed["components"] = tuple(given) if isinstance(given, list) else (given,)
        training = value.get("training")
        if isinstance(training, Mapping) and isinstance(training.get("steps"), list):
            fixed["training"] = {**training, "steps": tuple(training["steps"])}
        return fixed

    @model_validator(mode="after")
    def _agree(self) -> DecomposeRecipe:
        self.to_basis()
        fits = self.method == "least_squares"
        if fits == (self.model.weights == "random"):
            raise InputError(
                f"model.weights: expected {'pretrained or a file' if fits else 'random'} beside method {self.method}, "
                f"got {self.model.weights}.",
                remedy="least_squares decomposes given weights; phased and at_once learn new ones.",
            )
        if fits and self.teacher.name is not None:
            raise InputError("teacher.name: expected null beside method least_squares, which trains nothing.")
        if isinstance(self.training.steps, tuple) and len(self.training.steps) != len(self.added):
            raise InputError(
                f"training.steps: expected one number, or one for each of {len(self.added)} phases, "
                f"got {list(self.training.steps)}."
            )
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, *, overrides: Sequence[str] = ()) -> DecomposeRecipe:
        """The recipe in a YAML file (None: the empty one) with `overrides` such as "basis.start=1"."""
        values = {} if path is None else read_recipe(Path(path))
        for assignment in overrides:
            values = override(values, assignment)
        return cls(**anchored({key: value for key, value in values.items() if value is not None}, Path.cwd()))

    def to_yaml(self) -> str:
        """The recipe, defaults included, as YAML that `load` reads back."""
        return dump_yaml(self.model_dump(mode="json"))

    @property
    def total(self) -> int:
        """All components."""
        return sum(self.components)

    @property
    def added(self) -> tuple[int, ...]:
        """Components that each phase adds; at_once and least_squares have one phase."""
        return self.components if self.method == "phased" else (self.total,)

    @property
    def digest(self) -> str:
        """Digest of what decides the result: all but `execution` and `ray`."""
        return json_digest(self.model_dump(mode="json", exclude=_NOT_DECIDING))

    def to_basis(self) -> Basis:
        """The `basis` section as the noun of the decomposition."""
        return Basis(**self.basis.model_dump())

    def flags(self) -> ExecutionFlags:
        """The `execution` section as the noun of core."""
        threads = self.execution.threads
        return ExecutionFlags(
            **{**self.execution.model_dump(), "threads": (os.cpu_count() or 1) if threads == "auto" else threads}
        )
