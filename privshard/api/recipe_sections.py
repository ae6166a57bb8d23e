"""The sections of a recipe: every key with its default, its range and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_serializer,
    model_validator,
)

from privshard.api.recipe_methods import method_options
from privshard.core.errors import InputError
from privshard.core.model import Combine, Head
from privshard.core.privacy import AccountantName, Hardening, Unit


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, no silent conversions.

    A field's description completes the sentence "KEY: expected …".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _class_names(value: Any) -> Any:
    """A list of labels as a tuple of texts: whole numbers are labels too."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in value)


ColumnName = Annotated[str, Field(min_length=1)]
ClassNames = Annotated[tuple[ColumnName, ...], BeforeValidator(_class_names)]
Count = Annotated[int, Field(ge=1)]


class DataSection(Section):
    """Which rows, and the public constants about them. Without a path: the embedded example of handwritten digits.

    classes and the nominal counts are public constants: they are never derived from private rows. A null subject or
    split column is not read, even where the file has one.
    """

    path: ColumnName | None = Field(
        default=None, description="the path or URI of a Parquet file, or null for the example"
    )
    image: ColumnName = Field(default="image", description="the name of the column with the images")
    label: ColumnName = Field(default="label", description="the name of the column with the labels")
    subject: ColumnName | None = Field(default="subject", description="a column that says whom a row is about, or null")
    split: ColumnName | None = Field(default="split", description="a column that parts train from test rows, or null")
    classes: ClassNames | None = Field(default=None, description="a list of labels (texts or whole numbers)")
    nominal_examples: Count | None = Field(
        default=None, description="a public whole number of examples, 1 or more, or null"
    )
    nominal_subjects: Count | None = Field(
        default=None, description="a public whole number of subjects, 1 or more, or null"
    )

    @model_validator(mode="after")
    def _agree(self) -> DataSection:
        columns = [name for name in (self.image, self.label, self.subject, self.split) if name is not None]
        if len(set(columns)) < len(columns):
            raise InputError(f"data: expected a different column for each key, got {', '.join(columns)}.")
        if self.classes is not None:
            _check_classes(self.classes)
        if self.nominal_examples and self.nominal_subjects and self.nominal_subjects > self.nominal_examples:
            raise InputError(
                f"data.nominal_subjects: expected at most data.nominal_examples ({self.nominal_examples}), "
                f"got {self.nominal_subjects}.",
                remedy="Every subject has at least one example.",
            )
        given = [*self._set_columns, *(["classes"] if self.classes is not None else [])]
        if self.path is None and given:
            raise InputError(
                f"data.{given[0]}: expected data.path beside it, got none.",
                remedy="Name your data in data.path; the embedded example needs none of these keys.",
            )
        return self

    @property
    def explicit_columns(self) -> tuple[str, ...]:
        """The keys, among the four of columns, whose column the recipe itself names: it must exist."""
        return tuple(key for key in self._set_columns if getattr(self, key) is not None)

    @property
    def _set_columns(self) -> tuple[str, ...]:
        return tuple(key for key in ("image", "label", "subject", "split") if key in self.model_fields_set)


class PublicSection(Section):
    """Rows that anybody may know, beside the private ones. They are learnt from without noise and free of charge, they
    are not protected, and what they taught is never removed.

    core: a first component is learnt from them; every shard starts from it, and it is part of every model. Rows of the
    `test` split are left out. stated_public: somebody vouches that rows which name a subject are public all the same;
    without that they are refused.
    """

    path: ColumnName | None = Field(default=None, description="the path or URI of a Parquet file, or null for none")
    image: ColumnName = Field(default="image", description="the name of the column with the images")
    label: ColumnName = Field(default="label", description="the name of the column with the labels")
    subject: ColumnName = Field(default="subject", description="the name of a column that says whom a row is about")
    split: ColumnName | None = Field(default="split", description="a column that parts train from test rows, or null")
    stated_public: bool = Field(default=False, description="true where somebody vouches that all rows are public")
    core: bool = Field(default=True, description="true or false")

    @model_validator(mode="after")
    def _agree(self) -> PublicSection:
        given = sorted(self.model_fields_set - {"path"})
        if self.path is None and any(getattr(self, key) != type(self).model_fields[key].default for key in given):
            raise InputError(
                f"public.{given[0]}: expected public.path beside it, got none.",
                remedy="Name the public rows in public.path, or leave the section out.",
            )
        return self


class BaseSection(Section):
    """The frozen public base. No model: the one that the weights file names (`privshard recompose` writes such files),
    or the small one that ships inside the package.

    head: what the head starts from. random and orthogonal are drawn from head_seed; public is fitted on the rows of
    `public.path`. head_std: the standard deviation of its entries, which may not be zero: the head carries the signal
    back into the blocks.
    """

    model: ColumnName | None = Field(default=None, description="the name of a timm vision transformer, or null")
    args: dict[str, JsonValue] = Field(default={}, description="a mapping of keyword arguments for timm.create_model")
    weights: ColumnName = Field(
        default="embedded", description="embedded, pretrained, or the path of a safetensors file"
    )
    head: Head = Field(default="random", description="random, orthogonal or public")
    head_seed: int = Field(default=0, ge=0, lt=2**63, description="a whole number, 0 or more")
    head_std: float = Field(default=0.02, gt=0, description="a number above 0")

    @model_validator(mode="before")
    @classmethod
    def _named_models_are_pretrained(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("model") is not None and "weights" not in value:
            return {**value, "weights": "pretrained"}
        return value

    @model_validator(mode="after")
    def _agree(self) -> BaseSection:
        if self.model is None and self.weights == "pretrained":
            raise InputError(
                f"base.model: expected the model that base.weights ({self.weights}) belongs to, got none.",
                remedy="Name a timm model in base.model, or leave base.weights out.",
            )
        if self.model is None and self.args:
            raise InputError("base.args: expected base.model beside it, got none.", remedy="Name it, or drop the args.")
        if self.model is not None and self.weights == "embedded":
            raise InputError(
                f"base.weights: expected pretrained or a safetensors file for the model {self.model}, got embedded.",
                remedy="The embedded weights belong to the embedded base; leave base.model out to use it.",
            )
        return self


class MethodSection(Section):
    """How a shard learns: a method by name; every other key of the section is an option of that method."""

    name: str = Field(default="tangent", description="the name of a method")
    options: dict[str, JsonValue] = Field(default={}, description="a mapping of the method's options")

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        name, nested = value.get("name", "tangent"), value.get("options", {})
        if not isinstance(nested, Mapping):
            return value
        flat = {key: item for key, item in value.items() if key not in ("name", "options")}
        return {"name": name, "options": method_options(name, {**nested, **flat})}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


class ComposeSection(Section):
    """How the shards' components make one model: a rule by name, or with its option as a mapping.

    average: their displacements are averaged; one model, and for `tangent` and `head` exactly the mean of their logits,
    for other methods an approximation of it, whose error `evaluate` reports. ensemble: the logits of one model a
    component are averaged, at S times the cost of a prediction. curvature: the average in which every direction weighs
    by how much each shard's loss curves along it (`privshard.composition.curvature`); for `tangent` and `head`, trained
    to the optimum, without differential privacy. rank: how many directions are kept of each shard; null means the
    method's documented default.
    """

    rule: Combine = Field(default="average", description="average, ensemble or curvature")
    rank: Count | None = Field(default=None, description="a whole number, 1 or more, or null")

    @model_validator(mode="before")
    @classmethod
    def _a_rule_alone(cls, value: Any) -> Any:
        return {"rule": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agree(self) -> ComposeSection:
        if self.rank is not None and self.rule != "curvature":
            raise InputError(
                f"compose.rank: expected null beside compose.rule {self.rule}, got {self.rank}.",
                remedy="Only the rule curvature keeps directions; set compose.rule to curvature, or drop the rank.",
            )
        return self

    @model_serializer
    def _short(self) -> str | dict[str, Any]:
        return self.rule if self.rank is None else {"rule": self.rule, "rank": self.rank}


class PrivacySection(Section):
    """What changes the guarantee; see `privshard.core.privacy.PrivacyParams`, which it becomes."""

    epsilon: float | None = Field(
        default=8.0, gt=0, description="a number above 0, or null for no differential privacy"
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="a number between 0 and 1, both excluded")
    unit: Unit = Field(default="example", description="example or subject")
    max_grad_norm: float = Field(default=1.0, gt=0, description="a number above 0")
    planned_retrains: int = Field(default=1, ge=0, description="a whole number, 0 or more")
    epsilon_limit: float | None = Field(default=None, gt=0, description="a number above 0, or null to derive it")
    workspace_limit: float | None = Field(default=None, gt=0, description="a number above 0, or null for none")
    accountant: AccountantName = Field(
        default="rdp", description="rdp, prv or pld (the last two for plans that are only repeated)"
    )
    hardening: Hardening = Field(default="none", description="none or grid")

    @model_validator(mode="after")
    def _agree(self) -> PrivacySection:
        if self.hardening == "grid" and self.accountant != "rdp":
            raise InputError(
                f"privacy.accountant: expected rdp beside privacy.hardening grid, got {self.accountant}.",
                remedy="The noise on a grid is accounted by rdp, whose bound is proved for it.",
            )
        if self.workspace_limit is not None and (self.epsilon is None or self.workspace_limit < self.epsilon):
            raise InputError(
                f"privacy.workspace_limit: expected null, or at least privacy.epsilon, got {self.workspace_limit:g}.",
                remedy="The first training of a shard alone spends privacy.epsilon.",
            )
        if self.epsilon_limit is None:
            return self
        if self.epsilon is None:
            raise InputError(
                f"privacy.epsilon_limit: expected null without differential privacy, got {self.epsilon_limit:g}.",
                remedy="A limit means something only beside privacy.epsilon; set that, or drop the limit.",
            )
        if self.epsilon_limit < self.epsilon:
            raise InputError(
                f"privacy.epsilon_limit: expected at least privacy.epsilon ({self.epsilon:g}), "
                f"got {self.epsilon_limit:g}.",
                remedy="Raise the limit or lower epsilon: the first training alone spends epsilon.",
            )
        return self


class TrainingSection(Section):
    """Optimization of one shard. Null means the method's documented default; all are public constants.

    center: whether a (noisy) mean of the features is released first, to centre the head's input by. augmentations: how
    many fixed crops of each example are learnt from beside it, as one example. flips: every other one is mirrored.
    optimizer exact: the optimum itself, with weight_decay as its ridge and at most `steps` products with the Jacobian;
    only without differential privacy, where it is the default. layer_scales: e.g. {head.*: 0.3}, how much further those
    parameters move than others.
    """

    steps: Count | None = Field(default=None, description="a whole number, 1 or more, or null")
    sample_rate: float | None = Field(default=None, gt=0, le=1, description="a number above 0, at most 1, or null")
    center: bool | None = Field(default=None, description="true, false or null")
    optimizer: Literal["sgd", "adam", "exact"] | None = Field(default=None, description="sgd, adam, exact or null")
    lr: float | None = Field(default=None, gt=0, description="a number above 0, or null")
    momentum: float | None = Field(default=None, ge=0, lt=1, description="a number from 0, below 1, or null")
    loss: Literal["cross_entropy", "square"] | None = Field(default=None, description="cross_entropy, square or null")
    average_from: float | None = Field(
        default=None, ge=0, le=1, description="a fraction of the steps from 0 to 1, or null"
    )
    weight_decay: float | None = Field(default=None, ge=0, description="a number, 0 or more, or null")
    augmentations: int = Field(default=0, ge=0, le=64, description="a whole number from 0 to 64")
    flips: bool = Field(default=True, description="true or false")
    layer_scales: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        default=None, description="a mapping of parameter patterns to numbers above 0, or null"
    )


class ExecutionSection(Section):
    """How fast a shard computes; nothing here changes the guarantee or, up to rounding, the result.

    threads of one worker: bit-equality needs the same number. auto: as many as the worker has processors. cache and
    compile: see `privshard.core.execution.ExecutionFlags`, which this becomes.
    """

    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$", description="auto, cpu, cuda, cuda:N or mps"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="float32 or bfloat16")
    micro_batch: int = Field(default=64, ge=1, description="a whole number of examples, 1 or more")
    threads: Count | Literal["auto"] = Field(default=1, description="a whole number, 1 or more, or auto")
    cache: Literal["auto", "memory", "disk"] = Field(default="auto", description="auto, memory or disk")
    compile: bool | Literal["auto"] = Field(default="auto", description="auto, true or false")


class RaySection(Section):
    """Where shards run. local: a Ray started here; auto, an address: that cluster; none: this process, no Ray.

    schedule_timeout_s: for the cluster to answer, and for a worker to come; queue_timeout_s: for a removal's worker
    while a training of privshard holds the cluster; stall_timeout_s: a worker silent for so long is taken for dead.
    """

    address: str = Field(
        default="local",
        pattern=r"^(local|auto|none|ray://\S+|[^\s:/]+:[0-9]+|\[[0-9a-fA-F:]+\]:[0-9]+)$",
        description="local, auto, none, HOST:PORT or ray://HOST:PORT",
    )
    gpus_per_shard: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        default="auto", description="auto, a fraction of one GPU, or a whole number of GPUs, 0 or more"
    )
    cpus_per_shard: float = Field(default=1.0, ge=0, description="a number, 0 or more")
    schedule_timeout_s: float = Field(default=30.0, gt=0, description="seconds above 0")
    queue_timeout_s: float = Field(default=3600.0, gt=0, description="seconds above 0")
    stall_timeout_s: float = Field(default=1800.0, gt=0, description="seconds above 0")

    @field_validator("gpus_per_shard")
    @classmethod
    def _whole_above_one(cls, value: float | str) -> float | str:
        if isinstance(value, float) and value > 1 and value != int(value):
            raise ValueError("Ray shares one GPU in fractions, several only whole")
        return value


def _check_classes(classes: tuple[str, ...]) -> None:
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    if repeated:
        raise InputError(f"data.classes: expected every label once, got {', '.join(repeated)} more than once.")
    if len(classes) < 2:
        raise InputError(f"data.classes: expected at least two labels, got {len(classes)}.")
