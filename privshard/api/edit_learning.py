"""Learning an edit with the chosen editor: alone if it holds so, else in the presence of the edits in effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privshard.api.edit_editors import RIDGE, Chosen
from privshard.api.edit_target import Target
from privshard.data.images import image_batches
from privshard.data.pictures import read_pictures
from privshard.editing.heads import head_masks
from privshard.editing.learn import LearnOptions, learn
from privshard.editing.masks import gradient_scores, keep_top, shared
from privshard.editing.measure import predictions
from privshard.editing.rank_one import learn_rank_one, second_moment
from privshard.editing.tail import Tail, WeightTail, features


@dataclass(frozen=True, eq=False)
class Found:
    """One edit. moved: parameter name -> (1, out, in). steps: how many it took. beside: whether it was learnt in the
    presence of the edits in effect."""

    moved: dict[str, Tensor]
    steps: int
    beside: bool


def learn_edit(
    target: Target,
    tail: Tail,
    now: Tail,
    *,
    contents: Sequence[bytes],
    tokens: Tensor,
    labels_B: Tensor,
    chosen: Chosen,
    steps: int,
    unlabeled: str | None,
) -> Found | None:
    """One edit that makes all these images right beside the edits in effect; None where the steps don't suffice.

    First it is learnt on the components alone, so that it depends on no other edit. Only where it would not hold
    beside them is it learnt again with them; then it goes when they go. A rank-one edit, whose closed form is of the
    model itself, is only learnt alone.

    tail, now: the model without and with the edits in effect. contents, tokens: the images, and what enters the tail
    of them. unlabeled: images for the rank-one editor's keys.
    """
    options = LearnOptions(lr=chosen.lr, steps=steps)
    if chosen.editor == "rank-one":
        tries = [_rank_one(target, contents, labels_B, chosen, options, unlabeled)]
    else:
        tries = _masked(tail, now, tokens, labels_B, chosen, options)
    for found in tries:
        moves = any(bool(delta.any()) for delta in found.moved.values())
        if moves and bool((predictions(now, tokens, found.moved) == labels_B).all()):
            return found
    return None


def _masked(tail: Tail, now: Tail, tokens: Tensor, labels_B: Tensor, chosen: Chosen, options: LearnOptions):
    masks = _masks(tail, tokens, labels_B, chosen)
    for model, beside in ((tail, False), (now, True)) if now is not tail else ((tail, False),):
        learnt = learn(model, tokens, labels_B, masks, chosen.slots, options=options, together=True)
        yield Found(learnt.moved, int(learnt.steps_B.max()), beside)


def _masks(tail: Tail, tokens: Tensor, labels_B: Tensor, chosen: Chosen) -> dict[str, Tensor]:
    """One mask for all images, from a locator's scores or from the gradient."""
    if chosen.locator is not None:
        scores = shared(chosen.locator.scores(features(tail.view, tokens, first_block=tail.first_block)))
    else:
        scores = shared(gradient_scores(tail, tokens, labels_B, chosen.slots))
    if chosen.editor == "heads":
        return head_masks(tail.view, scores, chosen.keep, chosen.slots)
    return keep_top(scores, chosen.keep, chosen.slots)


def _rank_one(
    target: Target,
    contents: Sequence[bytes],
    labels_B: Tensor,
    chosen: Chosen,
    options: LearnOptions,
    unlabeled: str | None,
) -> Found:
    assert unlabeled is not None, "the verb refuses a rank-one edit without unlabeled images"
    (place,) = chosen.places
    moved, steps_B = learn_rank_one(
        target.base.view,
        target.tokens(contents, WeightTail(target.base.view, place.block)),
        labels_B,
        block=place.block,
        moment_KK=_moment(target, unlabeled, place.block),
        ridge=RIDGE,
        options=options,
    )
    return Found(moved, int(steps_B.max()), beside=False)


@torch.no_grad()
def _moment(target: Target, path: str, block: int) -> Tensor:
    """The second moment of the keys of all images of a folder or a Parquet file, batch by batch."""
    contents = [row.image for row in read_pictures(path)]
    view, batch = target.base.view, target.flags.micro_batch
    total = torch.zeros((), dtype=torch.float64, device=target.device)
    for pixels in image_batches(contents, transform=target.base.transform, batch_size=batch):
        tokens = view.tokens(pixels.to(target.device), first_block=block)
        total = total + len(tokens) * second_moment(view.blocks[block], tokens)
    return total / len(contents)
