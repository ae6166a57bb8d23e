"""What names a model version: the base, its components, and their public weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from privshard.core.digest import json_digest
from privshard.core.errors import InputError, VerificationError
from privshard.core.privacy import PrivacySpend

Space = Literal["tangent", "weight", "prompt"]
Combine = Literal["average", "ensemble", "curvature"]
Head = Literal["random", "orthogonal", "public"]


@dataclass(frozen=True)
class BaseSpec:
    """How to rebuild a base: timm's model name and arguments, where its weights come from, its seeded head.

    weights: "embedded" (ships inside the package), "pretrained" (timm's own download) or the path of a local
    safetensors file. The starting head must not be zero, or no block below it ever learns: "random" and "orthogonal"
    are drawn from `head_seed`, "public" was fitted on public rows; `head_std` is the standard deviation of its entries.
    public: digest of what was learnt from public rows, a head or a core; None where nothing was. transform: what
    differs from timm's own evaluation transform, for bases whose file names it; None where nothing does.
    """

    model: str
    num_classes: int
    weights: str = "embedded"
    args: Mapping[str, Any] = field(default_factory=dict)
    head_seed: int = 0
    head_std: float = 0.02
    transform: Mapping[str, Any] | None = None
    head: Head = "random"
    public: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "args": dict(self.args)}


@dataclass(frozen=True)
class ComponentRecord:
    """Everything public about one component; which examples it learnt from stays in a private side file.

    parameters: digest of the parameters that the displacement is a function of, kept beside it; None where the
    displacement itself is what was trained. curvature: digest of the curvature kept beside it; None where there is
    none.
    """

    id: str
    shard: int
    attempt: int
    method: str
    base: str
    recipe: str
    spend: PrivacySpend
    secure_randomness: bool
    space: Space = "tangent"
    parameters: str | None = None
    curvature: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ComponentRecord:
        """Inverse of `to_json`."""
        return ComponentRecord(**{**value, "spend": PrivacySpend(**value["spend"])})


@dataclass(frozen=True)
class Composition:
    """One model version: a base, components, and their public weights. An empty composition is the base itself.

    weights: component -> weight. Shard components average: dropping one leaves the others' proportions and their sum.
    Those in `added` (edits) add: dropping one leaves the other weights as they are, and dropping a shard component
    leaves theirs. combine: "average", one model displaced by sum_i weight_i D_i; "ensemble", the mean of the logits of
    one model for each shard component, each displaced by that component and by everything that is added. Both are the
    same model where components are linear in their displacement. "curvature", one model displaced by the average that
    weighs every direction by each component's curvature there (`privshard.composition.curvature`), and by what is
    added.
    """

    base: str
    weights: Mapping[str, float]
    added: frozenset[str] = frozenset()
    combine: Combine = "average"

    def __post_init__(self) -> None:
        unknown = sorted(self.added - self.weights.keys())
        if unknown:
            raise InputError(f"Composition: expected a weight for every added component, {unknown} have none.")
        if self.combine not in get_args(Combine):
            raise InputError(f"compose: expected average, ensemble or curvature, got {self.combine!r}.")

    @property
    def digest(self) -> str:
        """Digest of base, components, weights and how they act together."""
        return json_digest(self.to_json())

    @property
    def components(self) -> tuple[str, ...]:
        """Component ids, sorted."""
        return tuple(sorted(self.weights))

    @property
    def averaged(self) -> dict[str, float]:
        """The weights of the components that average, in sorted order."""
        return {name: self.weights[name] for name in self.components if name not in self.added}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form. Keys that hold their default are left out, so that digests of older versions stay."""
        extra: dict[str, Any] = {"added": sorted(self.added)} if self.added else {}
        extra |= {"combine": self.combine} if self.combine != "average" else {}
        return {"base": self.base, "weights": {name: self.weights[name] for name in self.components}, **extra}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Composition:
        """Inverse of `to_json`; VerificationError for keys that this version doesn't know."""
        unknown = sorted(value.keys() - {"base", "weights", "added", "combine"})
        if unknown:
            raise VerificationError(
                f"Composition: expected base, weights, added and combine, got {', '.join(unknown)} too.",
                remedy="A newer privshard wrote it: upgrade.",
            )
        return Composition(
            value["base"], value["weights"], frozenset(value.get("added", ())), value.get("combine", "average")
        )

    @staticmethod
    def uniform(base: str, components: list[str], *, combine: Combine = "average") -> Composition:
        """The plain average of `components`; the weight 1/S is a public constant."""
        if len(set(components)) != len(components):
            raise InputError(f"A component may occur once in a composition, got {sorted(components)}.")
        return Composition(base, {name: 1.0 / len(components) for name in sorted(components)}, combine=combine)

    def without(self, dropped: set[str]) -> Composition:
        """The composition of the other components: weights that average keep their proportions and their sum, weights
        that add stay."""
        averaged, added = self.averaged, self.added - dropped
        kept = {name: weight for name, weight in averaged.items() if name not in dropped}
        if kept == averaged:
            rest = averaged  # bit for bit: an edit that is taken out leaves no rounding behind
        elif all(weight == 1.0 / len(averaged) for weight in averaged.values()):
            rest = {name: 1.0 / len(kept) for name in kept}
        else:
            total, left = sum(averaged.values()), sum(kept.values())
            rest = {name: weight * total / left for name, weight in kept.items()}
        edits = {name: self.weights[name] for name in sorted(added)}
        return Composition(self.base, {**rest, **edits}, added, self.combine)

    def replacing(self, component: str, replacement: str) -> Composition:
        """The composition in which `replacement` has the place and the weight of `component`."""
        weights = {replacement if name == component else name: part for name, part in self.weights.items()}
        added = frozenset(replacement if name == component else name for name in self.added)
        return Composition(self.base, weights, added, self.combine)

    def adding(self, component: str, *, weight: float = 1.0) -> Composition:
        """The composition with one more component that adds, an edit; InputError where it is in there already."""
        if component in self.weights:
            raise InputError(f"A component may occur once in a composition, got {component} again.")
        return Composition(self.base, {**self.weights, component: weight}, self.added | {component}, self.combine)
