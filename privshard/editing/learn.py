"""Learning edits: RMSprop on the masked weights until every image is right, many edits at once.

B images, E edits: one each (E = B), or one for all of them (E = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from privshard.core.errors import InputError
from privshard.editing.places import Masks, Slot, masked
from privshard.editing.tail import Moved, Tail

DECAY, TINY = 0.99, 1e-8


@dataclass(frozen=True)
class LearnOptions:
    """lr: of RMSprop. steps: at most so many. loss_below: stop where the image is right and its loss is not above it.
    l1, l2: penalties on the displacement, l1 |d|_1 + l2 |d|^2, summed over weights. stop_early False takes all steps.
    """

    lr: float = 1e-4
    steps: int = 100
    loss_below: float = 0.01
    l1: float = 0.0
    l2: float = 0.0
    stop_early: bool = True

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise InputError(f"lr: expected a positive number, got {self.lr}.")
        if self.steps < 1:
            raise InputError(f"steps: expected at least 1, got {self.steps}.")


@dataclass(frozen=True, eq=False)
class Learnt:
    """Edits as they came out. moved: parameter name -> (E, out, in). steps_B: how many each image took. loss_B and
    right_B: of each image under its edit, in the end."""

    moved: dict[str, Tensor]
    steps_B: Tensor
    loss_B: Tensor
    right_B: Tensor


def learn(
    tail: Tail,
    tokens_BND: Tensor,
    labels_B: Tensor,
    masks: Masks,
    slots: Sequence[Slot],
    *,
    options: LearnOptions,
    together: bool = False,
) -> Learnt:
    """Change the masked neurons until each image is right: d <- d - lr * m g / (sqrt(v) + 1e-8), v the RMSprop mean.

    Guarantees: weights outside the mask keep a displacement of exactly zero; an edit that is done no longer moves, so
    that edits learnt in one batch are what they are alone, to rounding; tokens are computed once, by the caller.

    together: one edit for all images of the batch, from the mean of their losses; then masks have one row. Labels are
    class indices. The same as `torch.optim.RMSprop` with zeroed gradients, and as a loop over edits
    (tests/editing/test_learn.py).
    """
    edits = 1 if together else len(tokens_BND)
    moved = {slot.name: tokens_BND.new_zeros(edits, *slot.shape) for slot in slots}
    squares = {name: torch.zeros_like(delta) for name, delta in moved.items()}
    steps_B = torch.zeros_like(labels_B)
    for _ in range(options.steps):
        loss_B, right_B, gradients = _gradients(tail, tokens_BND, labels_B, moved, options, together=together)
        active_B = ~(right_B & (loss_B <= options.loss_below)) | (not options.stop_early)
        active_E = active_B.any().view(1) if together else active_B
        if options.stop_early and not bool(active_E.any()):
            return Learnt(moved, steps_B, loss_B, right_B)
        steps_B = steps_B + active_E
        gradients = masked(gradients, masks, slots)
        gate_E11 = active_E.to(tokens_BND.dtype).view(-1, 1, 1)
        for name, gradient in gradients.items():
            squares[name].mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
            moved[name].sub_(gate_E11 * options.lr * gradient / (squares[name].sqrt() + TINY))
    with torch.no_grad():
        logits_BC = tail.logits(tokens_BND, moved)
        loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
    return Learnt(moved, steps_B, loss_B, logits_BC.argmax(dim=1) == labels_B)


def example_gradients(tail: Tail, tokens_BND: Tensor, labels_B: Tensor, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """The gradient (B, out, in) of each image's cross entropy in the weights of `slots`, at no displacement."""
    moved = {slot.name: tokens_BND.new_zeros(len(tokens_BND), *slot.shape) for slot in slots}
    return _gradients(tail, tokens_BND, labels_B, moved, LearnOptions(), together=False)[2]


def _gradients(
    tail: Tail, tokens_BND: Tensor, labels_B: Tensor, moved: Moved, options: LearnOptions, *, together: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss and verdict of each image, and the gradient of each edit. Edits don't meet in the sum of the losses, so
    one backward pass gives the gradient of every edit by itself."""
    leaves = {name: delta.detach().requires_grad_() for name, delta in moved.items()}
    with torch.enable_grad():
        logits_BC = tail.logits(tokens_BND, leaves)
        loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
        total = loss_B.mean() if together else loss_B.sum()
        if options.l1 or options.l2:
            total = total + sum(_penalty(delta, options) for delta in leaves.values())
        found = torch.autograd.grad(total, list(leaves.values()))
    right_B = logits_BC.detach().argmax(dim=1) == labels_B
    return loss_B.detach(), right_B, dict(zip(leaves, found, strict=True))


def _penalty(delta: Tensor, options: LearnOptions) -> Tensor:
    return options.l1 * delta.abs().sum() + options.l2 * delta.square().sum()
