"""What an edit does: success on its image, generalization to its likes, locality elsewhere.

All are fractions that reach 1; what zero examples can't tell is None. C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privshard.editing.tail import Moved, Tail

MARGIN = 0.05


@dataclass(frozen=True)
class Measures:
    """success: share of the edited images that are right. generalization: of the others of the error group.
    locality: share of the sensitive examples whose prediction stays."""

    success: float
    generalization: float | None
    locality: float | None


def sensitive(logits_BC: Tensor, labels_B: Tensor, *, margin: float = MARGIN) -> Tensor:
    """Which examples an edit is likeliest to break (bool, B): right, and the two largest probabilities closer than
    `margin`. The rule of "Learning Where to Edit Vision Transformers"."""
    if logits_BC.shape[1] < 2:
        return torch.zeros_like(labels_B, dtype=torch.bool)
    top_B2 = torch.softmax(logits_BC, dim=1).topk(2, dim=1).values
    return (logits_BC.argmax(dim=1) == labels_B) & (top_B2[:, 0] - top_B2[:, 1] < margin)


def rate(hits_B: Tensor) -> float | None:
    """The share that is true; None of nothing."""
    return float(hits_B.double().mean()) if len(hits_B) else None


@torch.no_grad()
def predictions(tail: Tail, tokens_BND: Tensor, moved: Moved, *, batch: int = 256) -> Tensor:
    """The largest class of each image under one edit (1, out, in)."""
    parts = [tail.logits(part, moved).argmax(dim=1) for part in tokens_BND.split(batch)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=tokens_BND.device)


def measure(
    tail: Tail,
    moved: Moved,
    *,
    edited: tuple[Tensor, Tensor],
    likes: tuple[Tensor, Tensor],
    sensitive_tokens: Tensor,
    sensitive_before: Tensor,
) -> Measures:
    """The three measures of one edit.

    edited, likes: tokens and labels of the edited images, and of the others of their group. sensitive_before: what
    the model predicted on the sensitive examples before the edit.
    """
    success = rate(predictions(tail, edited[0], moved) == edited[1])
    assert success is not None
    return Measures(
        success=success,
        generalization=rate(predictions(tail, likes[0], moved) == likes[1]),
        locality=rate(predictions(tail, sensitive_tokens, moved) == sensitive_before),
    )
