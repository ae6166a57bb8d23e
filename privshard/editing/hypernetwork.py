"""The hypernetwork: from the feature of one image to a score for every neuron that may be edited.

B images, D width, K neurons of a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from privshard.core.errors import InputError
from privshard.editing.places import Slot

SHARPNESS = 3.0


@dataclass(frozen=True)
class HypernetworkShape:
    """Sizes of a hypernetwork, all derived from the base but `depth`. slots: (name, axis, out, in) of each matrix."""

    width: int
    num_heads: int
    depth: int
    slots: tuple[tuple[str, int, int, int], ...]

    @property
    def slot_views(self) -> tuple[Slot, ...]:
        """The matrices that are scored."""
        return tuple(Slot(name, axis, (out, width)) for name, axis, out, width in self.slots)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "slots": [list(slot) for slot in self.slots]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> HypernetworkShape:
        """Inverse of `to_json`."""
        slots = tuple((str(name), int(axis), int(out), int(width)) for name, axis, out, width in value["slots"])
        return HypernetworkShape(int(value["width"]), int(value["num_heads"]), int(value["depth"]), slots)


def shape_for(*, width: int, num_heads: int, depth: int, slots: Sequence[Slot]) -> HypernetworkShape:
    """The shape for a base of this width; it has as many heads as the base's attention."""
    if depth < 1:
        raise InputError(f"depth: expected at least one block, got {depth}.")
    if width % num_heads:
        raise InputError(f"heads: expected a divisor of the width {width}, got {num_heads}.")
    return HypernetworkShape(width, num_heads, depth, tuple((s.name, s.axis, *s.shape) for s in slots))


class Hypernetwork(nn.Module):
    """Pre-norm transformer blocks (MLP ratio 1) over the image's feature and one learned token a slot; each token's
    own linear head scores the neurons of its slot. A mask is sigmoid(3 * score); what counts is the order."""

    def __init__(self, shape: HypernetworkShape, *, seed: int) -> None:
        super().__init__()
        self.shape = shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            block = nn.TransformerEncoderLayer(
                shape.width,
                shape.num_heads,
                dim_feedforward=shape.width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            self.norm_in = nn.LayerNorm(shape.width)
            self.tokens_SD = nn.Parameter(torch.randn(len(shape.slots), shape.width) * 0.02)
            self.blocks = nn.TransformerEncoder(block, shape.depth, enable_nested_tensor=False)
            self.norm_out = nn.LayerNorm(shape.width)
            self.heads = nn.ModuleList([nn.Linear(shape.width, slot.size) for slot in shape.slot_views])
            for parameter in self.blocks.parameters():
                if parameter.ndim == 2:  # the encoder copies one block: each starts at its own
                    nn.init.xavier_uniform_(parameter)

    def forward(self, feature_BD: Tensor) -> dict[str, Tensor]:
        """Scores (B, K) of each slot's neurons, by name."""
        image_B1D = self.norm_in(feature_BD).unsqueeze(1)
        learned_BSD = self.tokens_SD.expand(len(feature_BD), -1, -1)
        out_BSD = self.norm_out(self.blocks(torch.cat([image_B1D, learned_BSD], dim=1))[:, 1:])
        slots = self.shape.slot_views
        return {slot.name: head(out_BSD[:, at]) for at, (slot, head) in enumerate(zip(slots, self.heads, strict=True))}

    @property
    def num_parameters(self) -> int:
        """How many numbers are learnt."""
        return sum(parameter.numel() for parameter in self.parameters())
