"""Masks: which neurons an edit may change, from scores, at random, by magnitude or by gradient.

A mask is one tensor (B, size) of zeros and ones for each slot, by name. B edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from privshard.core.errors import InputError
from privshard.editing.learn import example_gradients
from privshard.editing.places import Slot
from privshard.editing.tail import Tail


def num_kept(keep: float, slots: Sequence[Slot]) -> int:
    """How many neurons a share `keep` of all is; InputError where that is none.

    keep: rho, in (0, 1].
    """
    return share_of(sum(slot.size for slot in slots), "neurons", keep)


def share_of(total: int, what: str, keep: float, *, otherwise: str = "") -> int:
    """How many of `total` a share `keep` in (0, 1] is; InputError where that is none. otherwise: a further remedy."""
    kept = round(keep * total) if 0 < keep <= 1 else 0
    if kept == 0:
        raise InputError(
            f"keep: expected a share in (0, 1] that keeps at least one of {total} {what}, got {keep:g}.",
            remedy=f"{1 / total:.2g} keeps one{otherwise}.",
        )
    return kept


def keep_top(scores: Mapping[str, Tensor], keep: float, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """The mask of the share `keep` of all neurons with the largest scores (B, size), over all slots together.

    Ties go to the earlier neuron, so the same scores give the same mask anywhere. Equal to sorting in a loop
    (tests/editing/test_masks.py).
    """
    kept = num_kept(keep, slots)
    joined_BK = torch.cat([scores[slot.name] for slot in slots], dim=1)
    order_BK = torch.sort(joined_BK, dim=1, descending=True, stable=True).indices[:, :kept]
    mask_BK = torch.zeros_like(joined_BK).scatter(1, order_BK, 1.0)
    return split(mask_BK, slots)


def split(values_BK: Tensor, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """Values over all neurons (B, total) by slot."""
    parts = values_BK.split([slot.size for slot in slots], dim=1)
    return {slot.name: part for slot, part in zip(slots, parts, strict=True)}


def everything(slots: Sequence[Slot], *, like: Tensor, num: int = 1) -> dict[str, Tensor]:
    """The mask that keeps all neurons."""
    return {slot.name: like.new_ones(num, slot.size) for slot in slots}


def random_scores(slots: Sequence[Slot], *, num: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Scores that choose neurons at random, for each of `num` edits anew; on the CPU."""
    return split(torch.rand(num, sum(slot.size for slot in slots), generator=generator), slots)


def magnitude_scores(tail: Tail, slots: Sequence[Slot], *, num: int) -> dict[str, Tensor]:
    """The norm of each neuron's own weights: the same for every image."""
    parameters = dict(tail.view.model.named_parameters())
    scores = {slot.name: parameters[slot.name].detach().norm(dim=1 - slot.axis) for slot in slots}
    return {name: score_K.expand(num, -1) for name, score_K in scores.items()}


def gradient_scores(tail: Tail, tokens_BND: Tensor, labels_B: Tensor, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """The norm of the gradient of each image's loss in each neuron's weights."""
    gradients = example_gradients(tail, tokens_BND, labels_B, slots)
    return {slot.name: gradients[slot.name].norm(dim=2 - slot.axis) for slot in slots}


def shared(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One row of scores for an edit of several images: their mean."""
    return {name: score_BK.mean(dim=0, keepdim=True) for name, score_BK in scores.items()}
