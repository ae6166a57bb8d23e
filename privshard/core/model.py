"""What names a model version: the base, its components, and their public weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from privshard.core.digest import json_digest
from privshard.core.errors import InputError
from privshard.core.privacy import PrivacySpend


@dataclass(frozen=True)
class BaseSpec:
    """How to rebuild a base: timm's model name and arguments, where its weights come from, its seeded head.

    weights: "embedded" (ships inside the package), "pretrained" (timm's own download) or the path of a local
    safetensors file. The starting head is drawn from `head_seed` with standard deviation `head_std`: it must not be
    zero, or no block below it ever learns.
    """

    model: str
    num_classes: int
    weights: str = "embedded"
    args: Mapping[str, Any] = field(default_factory=dict)
    head_seed: int = 0
    head_std: float = 0.02

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "args": dict(self.args)}


@dataclass(frozen=True)
class ComponentRecord:
    """Everything public about one component; which examples it learnt from stays in a private side file."""

    id: str
    shard: int
    attempt: int
    method: str
    base: str
    recipe: str
    spend: PrivacySpend
    secure_randomness: bool
    space: Literal["tangent", "weight"] = "tangent"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ComponentRecord:
        """Inverse of `to_json`."""
        return ComponentRecord(**{**value, "spend": PrivacySpend(**value["spend"])})


@dataclass(frozen=True)
class Composition:
    """One model version: f(x) = f0(x) + sum_i weight_i J(x) D_i over the components, with public weights.

    An empty composition is the base itself.
    """

    base: str
    weights: Mapping[str, float]

    @property
    def digest(self) -> str:
        """Digest of base, components and weights."""
        return json_digest(self.to_json())

    @property
    def components(self) -> tuple[str, ...]:
        """Component ids, sorted."""
        return tuple(sorted(self.weights))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {"base": self.base, "weights": {name: self.weights[name] for name in self.components}}

    @staticmethod
    def uniform(base: str, components: list[str]) -> Composition:
        """The plain average of `components`; the weight 1/S is a public constant."""
        if len(set(components)) != len(components):
            raise InputError(f"A component may occur once in a composition, got {sorted(components)}.")
        return Composition(base, {name: 1.0 / len(components) for name in sorted(components)})

    def without(self, dropped: set[str]) -> Composition:
        """The composition of the other components: weights keep their proportions and their sum."""
        kept = {name: weight for name, weight in self.weights.items() if name not in dropped}
        if all(weight == 1.0 / len(self.weights) for weight in self.weights.values()):
            return Composition.uniform(self.base, list(kept)) if kept else Composition(self.base, {})
        total, rest = sum(self.weights.values()), sum(kept.values())
        return Composition(self.base, {name: weight * total / rest for name, weight in kept.items()})
