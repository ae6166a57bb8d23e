"""Places: which weights of a vision transformer may be edited, and the neurons that they consist of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from privshard.core.errors import InputError
from privshard.models.vit import ViTView

Kind = Literal["ffn", "attention"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Masks = Mapping[str, Tensor]

# kind -> (module inside the block, axis of its weight along which its neurons lie)
_MATRICES: Mapping[Kind, tuple[tuple[str, int], ...]] = {
    "ffn": (("mlp.fc1", 0), ("mlp.fc2", 1)),
    "attention": (("attn.qkv", 0), ("attn.proj", 1)),
}


@dataclass(frozen=True, order=True)
class Place:
    """One block's feed-forward network ("ffn") or attention: the unit of where a model may be edited."""

    block: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.kind}:{self.block}"


@dataclass(frozen=True)
class Slot:
    """One weight matrix of a place, as neurons along an axis: rows (0: fc1, qkv) or columns (1: fc2, proj).

    name: of the parameter. shape: (out, in). Biases stay as they are.
    """

    name: str
    axis: int
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        """The number of its neurons."""
        return self.shape[self.axis]

    def spread(self, mask_BK: Tensor) -> Tensor:
        """A mask over the neurons (B, size), ready to multiply displacements (B, out, in)."""
        return mask_BK.unsqueeze(2 - self.axis)


def parse_places(text: str, *, depth: int) -> tuple[Place, ...]:
    """Places from their short form: comma-separated KIND:BLOCK or KIND:FIRST-LAST.

    >>> [str(place) for place in parse_places("ffn:1-2,attention:2", depth=3)]
    ['ffn:1', 'attention:2', 'ffn:2']
    """
    found: set[Place] = set()
    for part in text.split(","):
        kind, _, blocks = part.strip().partition(":")
        first, _, last = blocks.partition("-")
        if kind not in KINDS or not first.isdecimal() or (last and not last.isdecimal()):
            raise InputError(
                f"places: expected parts like ffn:8 or attention:8-10, got {part.strip()!r}.",
                remedy=f"Kinds are {', '.join(KINDS)}; blocks are counted from 0.",
            )
        found |= {Place(block, kind) for block in range(int(first), int(last or first) + 1)}  # pyright: ignore
    return check_places(found, depth=depth)


def default_places(depth: int, *, kind: Kind = "ffn") -> tuple[Place, ...]:
    """The places of one kind in up to three blocks before the last one: blocks 8 to 10 of 12."""
    last = max(depth - 2, 0)
    return tuple(Place(block, kind) for block in range(max(last - 2, 0), last + 1))


def check_places(places: Iterable[Place], *, depth: int, first_block: int = 0) -> tuple[Place, ...]:
    """The places in their one order; InputError for none, or for a block outside `first_block` to depth - 1."""
    ordered = tuple(sorted(set(places)))
    if not ordered:
        raise InputError("places: expected at least one place to edit, got none.")
    outside = [str(place) for place in ordered if not first_block <= place.block < depth]
    if outside:
        raise InputError(
            f"places: expected blocks {first_block} to {depth - 1}, got {', '.join(outside)}.",
            remedy="Blocks are counted from 0; in a workspace only the linearized blocks can be edited.",
        )
    return ordered


def slots_of(view: ViTView, places: Sequence[Place]) -> tuple[Slot, ...]:
    """The weight matrices of places, with sizes as the model has them."""
    slots = []
    for place in check_places(places, depth=len(view.blocks)):
        block = view.blocks[place.block]
        for module, axis in _MATRICES[place.kind]:
            weight = block.parts()[module].get_parameter("weight")
            slots.append(Slot(f"{block.name}.{module}.weight", axis, (weight.shape[0], weight.shape[1])))
    return tuple(slots)


def first_block_of(places: Iterable[Place]) -> int:
    """The first block that is edited: whatever comes before it is computed once."""
    return min(place.block for place in places)


def masked(moved: Mapping[str, Tensor], masks: Masks, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """Displacements (B, out, in) times their masks (B, size), by name."""
    return {slot.name: moved[slot.name] * slot.spread(masks[slot.name]) for slot in slots}
