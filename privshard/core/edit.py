"""What names an edit and a locator: where they come from, and what they were learnt on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from privshard.core.model import Space


@dataclass(frozen=True)
class EditRecord:
    """Everything public about one edit; whose image it was learnt from stays in a private side file.

    locator: digest of the locator that chose its neurons; None of another editor. keep: the share of neurons or heads
    that it was allowed. components: what the model was composed of when it was learnt. edits: those that it was learnt
    in the presence of, because alone it would not have held beside them. editor: what chose the weights that move,
    such as "heads". No edit has a privacy guarantee for its own images.
    """

    id: str
    base: str
    space: Space
    locator: str | None
    keep: float
    places: tuple[str, ...]
    components: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    editor: str = "gradient"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in ("places", "components", "edits")}}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> EditRecord:
        """Inverse of `to_json`. Records of the first releases name no editor: a locator chose then, or the gradient."""
        first = {"editor": "locator" if value["locator"] else "gradient"}
        lists = {name: tuple(value[name]) for name in ("places", "components", "edits")}
        return EditRecord(**{**first, **value, **lists})
