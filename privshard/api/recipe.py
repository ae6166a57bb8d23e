"""The recipe: everything that a training is asked for, in one validated value."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from privshard.api.recipe_errors import input_error
from privshard.api.recipe_methods import LINEAR_METHODS
from privshard.api.recipe_sections import (
    BaseSection,
    ComposeSection,
    DataSection,
    ExecutionSection,
    MethodSection,
    PrivacySection,
    PublicSection,
    RaySection,
    TrainingSection,
)
from privshard.api.recipe_yaml import anchored, dump_yaml, override, read_recipe
from privshard.core.digest import json_digest
from privshard.core.errors import InputError
from privshard.core.execution import ExecutionFlags
from privshard.core.privacy import PrivacyParams

if TYPE_CHECKING:
    from privshard.core.jobs import MethodSpec

_SECTIONS = {"data", "public", "base", "method", "compose", "privacy", "training", "execution", "ray"}
_NOT_DECIDING = {"execution", "ray", "ledger"}


class Recipe(BaseModel):
    """What to train, on what, how and under which guarantee. `Recipe()` is the embedded example.

    Frozen. Sections: data, public, base, method, compose, privacy, training, execution, ray; see each for its keys.
    Raises InputError that names the key, what was expected and what came; unknown keys are refused.

    compose: how the shards' components make one model, "average", "ensemble" or "curvature"; see `ComposeSection`.

    ledger: a database URL for the ledger; without one it is a file in the workspace. It decides nothing that is learnt,
    and its password is never written down (`privshard.store.ledger_place`).

    insecure_seed: for tests only. An integer makes all randomness reproducible, and with that no longer secret: every
    artefact is then marked as not private.

    >>> Recipe(shards=8, privacy={"epsilon": 3}).privacy.epsilon
    3.0
    >>> Recipe(privacy={"epsilon": -1})
    Traceback (most recent call last):
    privshard.core.errors.InputError: privacy.epsilon: expected a number above 0, or null for no differential privacy, \
got -1. Correct the recipe, or override it with --set KEY=VALUE.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    data: DataSection = DataSection()
    public: PublicSection = PublicSection()
    base: BaseSection = BaseSection()
    method: MethodSection = MethodSection()
    shards: int = Field(default=4, ge=1, description="a whole number, 1 or more")
    compose: ComposeSection = ComposeSection()
    privacy: PrivacySection = PrivacySection()
    training: TrainingSection = TrainingSection()
    execution: ExecutionSection = ExecutionSection()
    ray: RaySection = RaySection()
    ledger: str | None = Field(
        default=None,
        pattern=r"^(postgres(ql)?(\+psycopg)?|sqlite)://",
        repr=False,
        description="a database URL such as postgresql://user@host/database, or null for a file in the workspace",
    )
    insecure_seed: int | None = Field(default=None, ge=0, lt=2**63, description="a whole number, 0 or more, or null")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise input_error(error, model=type(self)) from None

    @model_validator(mode="after")
    def _public_rows_agree(self) -> Recipe:
        """Public rows teach a core or a head; each of them needs such rows."""
        if self.base.head == "public" and self.public.path is None:
            raise InputError(
                "base.head: expected public.path beside public, got none.",
                remedy="Name the public rows that the head is fitted on, or choose random or orthogonal.",
            )
        if self.base.head == "public" and self.method.name == "gift":
            raise InputError(
                "base.head: expected random or orthogonal for the method gift, whose files rebuild their base without "
                "a workspace; got public.",
                remedy="Choose another starting head, or another method.",
            )
        if self.public.path is not None and not self.public.core and self.base.head != "public":
            raise InputError(
                "public.core: expected true, or base.head public, beside public.path; nothing would learn from it.",
                remedy="Leave public.core out, or the whole section.",
            )
        if self.public.path is not None and self.public.core and self.method.name not in LINEAR_METHODS:
            raise InputError(
                f"public.core: expected a method that is linear in what it learns ({', '.join(LINEAR_METHODS)}), got "
                f"{self.method.name}.",
                remedy="Set public.core to false and base.head to public, or use another method.",
            )
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, *, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe in the YAML file `path` (None: the empty one) with `overrides` such as "privacy.epsilon=3".

        Relative paths in the file are resolved against its folder, those in overrides against the current one.
        Raises InputError for a file that cannot be read and for every wrong key or value.
        """
        values = {} if path is None else read_recipe(Path(path))
        for assignment in overrides:
            values = override(values, assignment)
        empty = {key for key, value in values.items() if value is None and key in _SECTIONS}
        values = {key: value for key, value in values.items() if key not in empty}
        return cls(**anchored(values, Path.cwd()))

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with other values under dotted keys; InputError as on construction.

        >>> Recipe().with_values({"training.lr": 0.1}).training.lr
        0.1
        """
        dumped = self.model_dump(exclude_unset=True)
        for key, value in values.items():
            *path, last = key.split(".")
            place = dumped
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value
        return type(self)(**dumped)

    def to_yaml(self) -> str:
        """The recipe, defaults included, as YAML that `load` reads back to a recipe of the same digest.

        Column names that nobody set stay out: only a column that was asked for by name must exist. So does the ledger,
        whose URL may hold a password; the workspace points to it.
        """
        values = self.model_dump(mode="json", exclude={"ledger"})
        unset = {"image", "label", "subject", "split"} - self.data.model_fields_set
        values["data"] = {key: value for key, value in values["data"].items() if key not in unset}
        return dump_yaml(values)

    @property
    def digest(self) -> str:
        """Digest of what decides the result: all but `execution`, `ray` and `ledger`."""
        return json_digest(self._deciding())

    def changed_keys(self, other: Recipe) -> tuple[str, ...]:
        """The dotted keys, among those that decide the result, in which two recipes differ.

        >>> Recipe().changed_keys(Recipe(shards=2, ray={"address": "none"}))
        ('shards',)
        """
        mine, theirs = _flattened(self._deciding()), _flattened(other._deciding())
        return tuple(key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key))

    @property
    def private(self) -> bool:
        """Whether differential privacy is asked for."""
        return self.privacy.epsilon is not None

    def privacy_params(self) -> PrivacyParams:
        """The `privacy` section as the noun of core."""
        return PrivacyParams(**self.privacy.model_dump())

    def method_spec(self) -> MethodSpec:
        """The `method` section as the noun of core."""
        from privshard.core.jobs import MethodSpec

        return MethodSpec(self.method.name, dict(self.method.options))

    def flags(self) -> ExecutionFlags:
        """The `execution` section as the noun of core; `threads: auto` becomes the processors one worker has."""
        threads = self.execution.threads
        if threads == "auto":
            threads = (os.cpu_count() or 1) if self.ray.address == "none" else max(1, int(self.ray.cpus_per_shard))
        return ExecutionFlags(**{**self.execution.model_dump(), "threads": threads})

    def _deciding(self) -> dict[str, Any]:
        """Keys that came later than the first workspaces are left out at their default, so that digests stay."""
        values = self.model_dump(mode="json", exclude=_NOT_DECIDING)
        if self.compose.rule == "average":
            del values["compose"]
        if self.public.path is None:
            del values["public"]
        if self.base.head == "random":
            del values["base"]["head"]
        return values


def _flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(
            _flattened(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
        )
    return flat
