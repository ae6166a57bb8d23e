"""The stacks of equal blocks in a model: found by the names of its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privshard.core.errors import InputError

_BLOCK = re.compile(r"^((?:.+\.)?blocks)\.(\d+)\.(.+)$")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """`depth` blocks of equal parameters under `prefix`: "blocks" of a ViT, "layers.0.blocks", … of a Swin's stages."""

    prefix: str
    depth: int
    shapes: Mapping[str, Shape]

    def full_name(self, block: int, name: str) -> str:
        """The model's name of a parameter of one block."""
        return f"{self.prefix}.{block}.{name}"


def find_stacks(shapes: Mapping[str, Shape]) -> tuple[Stack, ...]:
    """The stacks of a model whose parameters have these names and shapes, in order of their prefixes.

    Raises InputError where there is none, and where blocks of one stack differ, naming both sides. Stages of a
    hierarchical model are stacks of their own, so they may differ from each other.
    """
    blocks: dict[str, dict[int, dict[str, Shape]]] = {}
    for name, shape in shapes.items():
        match = _BLOCK.match(name)
        if match is not None:
            blocks.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tuple(shape)
    if not blocks:
        raise InputError(
            "model: expected a transformer with blocks (a ViT's, or the stages of a Swin), got one without.",
            remedy="Use a timm vision transformer or Swin transformer.",
        )
    return tuple(_stack(prefix, found) for prefix, found in sorted(blocks.items()))


def with_depths(stacks: Sequence[Stack], depths: Sequence[int] | None) -> tuple[Stack, ...]:
    """The stacks at other depths, one number a stack; None keeps theirs. Raises InputError for depth 0."""
    if depths is None:
        return tuple(stacks)
    if len(depths) != len(stacks):
        names = ", ".join(stack.prefix for stack in stacks)
        raise InputError(f"depth: expected {len(stacks)} number(s), one for each of {names}, got {list(depths)}.")
    if any(depth < 1 for depth in depths):
        raise InputError(
            f"depth: expected at least 1, got {min(depths)}.", remedy="A model has at least one block in every stack."
        )
    return tuple(Stack(stack.prefix, depth, stack.shapes) for stack, depth in zip(stacks, depths, strict=True))


def args_with_depth(args: Mapping[str, Any], stacks: Sequence[Stack]) -> dict[str, Any]:
    """timm's arguments for a model of the stacks' depths."""
    if len(stacks) == 1:
        return {**args, "depth": stacks[0].depth}
    return {**args, "depths": [stack.depth for stack in stacks]}


def plain_names(names: Sequence[str]) -> list[str]:
    """The names outside all stacks: embeddings, downsampling, final norm, head."""
    return [name for name in names if _BLOCK.match(name) is None]


def is_head(name: str) -> bool:
    """Whether a plain parameter comes after the blocks: final norm and classifier."""
    return name.split(".")[0] in ("norm", "fc_norm", "head", "head_dist", "attn_pool", "head_drop", "pre_logits")


def _stack(prefix: str, found: Mapping[int, Mapping[str, Shape]]) -> Stack:
    first = found.get(0, {})
    for index in range(len(found)):
        here = found.get(index)
        if here == first:
            continue
        odd = sorted(name for name in first.keys() | (here or {}).keys() if first.get(name) != (here or {}).get(name))
        raise InputError(
            f"model: expected blocks of equal shape in {prefix}, but {prefix}.{index} differs from {prefix}.0: "
            f"{odd[0]} is {(here or {}).get(odd[0], 'absent')} instead of {first.get(odd[0], 'absent')}.",
            remedy="Only stacks of equal blocks can be decomposed; a Swin's stages are taken one by one.",
        )
    return Stack(prefix, len(found), dict(first))
