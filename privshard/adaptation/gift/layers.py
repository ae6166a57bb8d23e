"""Which linear layers of a vision transformer get a residual: chosen by name or pattern, a fused qkv in its parts.

O output and I input width of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor, nn

from privshard.core.errors import InputError
from privshard.models.vit import BlockView, ViTView

DEFAULT_LAYERS = ("attn.proj",)
KINDS = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True, eq=False)
class TargetLayer:
    """One linear map x -> W x of a block: a whole linear layer, or the q, k or v rows of a fused one.

    name: blocks.N.KIND. parameter: the base's name of the weight that holds W. rows: where W lies in it.
    """

    name: str
    block: int
    kind: str
    parameter: str
    module: nn.Linear
    rows: slice

    @property
    def weight_OI(self) -> Tensor:
        """W, a view of the base's weight."""
        return self.module.weight[self.rows]

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.rows.stop - self.rows.start, self.module.in_features


def target_layers(view: ViTView, patterns: Sequence[str] = DEFAULT_LAYERS) -> tuple[TargetLayer, ...]:
    """The layers that `patterns` name, in the order of the model.

    A pattern is a kind (attn.q, attn.k, attn.v, attn.proj, mlp.fc1, mlp.fc2), a layer (blocks.3.attn.proj) or either
    with wildcards (blocks.1?.attn.*). Raises InputError for a pattern that matches nothing, and for none at all.

    Test: tests/adaptation/gift/test_layers.py.
    """
    known = [layer for index, block in enumerate(view.blocks) for layer in _layers(index, block)]
    if not patterns:
        raise InputError("method.layers: expected at least one layer, got none.", remedy=_names(known))
    for pattern in patterns:
        if not any(_matches(layer, pattern) for layer in known):
            close = get_close_matches(pattern, [*KINDS, *(layer.name for layer in known)], n=3)
            hint = f"Close names: {', '.join(close)}. " if close else ""
            raise InputError(
                f"method.layers: expected linear layers of the model, got {pattern!r}, which matches none.",
                remedy=hint + _names(known),
            )
    return tuple(layer for layer in known if any(_matches(layer, pattern) for pattern in patterns))


def _matches(layer: TargetLayer, pattern: str) -> bool:
    return fnmatchcase(layer.kind, pattern) or fnmatchcase(layer.name, pattern)


def _names(known: Sequence[TargetLayer]) -> str:
    return f"Layers are {', '.join(KINDS)}, or one block's, {known[0].name} to {known[-1].name}."


def _layers(index: int, block: BlockView) -> list[TargetLayer]:
    width = block.qkv.out_features // 3
    parts = {kind: slice(start * width, (start + 1) * width) for start, kind in enumerate(("q", "k", "v"))}
    places: list[tuple[str, str, nn.Linear, slice]] = [
        (f"attn.{kind}", "attn.qkv", block.qkv, rows) for kind, rows in parts.items()
    ]
    for kind, module in (("attn.proj", block.proj), ("mlp.fc1", block.fc1), ("mlp.fc2", block.fc2)):
        places.append((kind, kind, module, slice(0, module.out_features)))
    return [
        TargetLayer(f"{block.name}.{kind}", index, kind, f"{block.name}.{part}.weight", module, rows)
        for kind, part, module, rows in places
    ]
