"""What describes a generator: form, rank, layers, sharing; the `method` section of a recipe without its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from privshard.adaptation.gift.layers import DEFAULT_LAYERS
from privshard.adaptation.gift.sharing import Sharing
from privshard.core.errors import InputError

Form = Literal["compact", "paca"]


@dataclass(frozen=True)
class GiftSpec:
    """The architecture of a generator.

    generator: "compact", W' = W (I + phi psi), or "paca", the hyper-transformer. rank: R, the rank of every residual
    (paca: also its inner width), 1 to the width of the layers. layers, sharing: `layers.target_layers`,
    `sharing.groups`. clusters, depth, ffn_ratio: of the paca form alone: M clusters, l blocks, and how many times
    wider than R its feed-forward part is.
    """

    generator: Form = "compact"
    rank: int = 16
    layers: tuple[str, ...] = DEFAULT_LAYERS
    sharing: Sharing = "all"
    clusters: int = 96
    depth: int = 1
    ffn_ratio: int = 4

    def __post_init__(self) -> None:
        if self.generator not in get_args(Form):
            raise InputError(f"method.generator: expected one of {', '.join(get_args(Form))}, got {self.generator!r}.")
        for name in ("rank", "clusters", "depth", "ffn_ratio"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"method.{name}: expected a whole number, 1 or more, got {value!r}.")

    @staticmethod
    def of(options: Mapping[str, Any]) -> GiftSpec:
        """The spec in plain JSON options; InputError for options that a generator does not have."""
        known = {field.name for field in fields(GiftSpec)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise InputError(f"method.{unknown[0]}: unknown option of gift; it has {', '.join(sorted(known))}.")
        layers = options.get("layers", DEFAULT_LAYERS)
        return GiftSpec(**{**options, "layers": (layers,) if isinstance(layers, str) else tuple(layers)})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "layers": list(self.layers)}
