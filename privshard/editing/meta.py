"""Meta-training, first half: for each episode, the mask under which a short masked edit undoes a CutMix patch.

Free masks per example, with a first-order inner loop: B episodes, E = B edits, K neurons over all slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from privshard.core.errors import InputError
from privshard.editing.masks import split
from privshard.editing.places import Slot, masked
from privshard.editing.tail import Tail


@dataclass(frozen=True)
class MetaOptions:
    """temperature: T of the divergence. inner_steps, inner_lr: of the masked edit. outer_steps, outer_lr: RMSprop of
    the free masks. sparsity: weight of mean |m|. sharpness: m = sigmoid(sharpness * v).

    The paper has inner_lr 1e-3 and sparsity 1 for ViT-B; on DeiT-Tiny, whose divergences are small, those leave nearly
    empty masks, which teach no order. The defaults here keep about a tenth of its neurons.
    """

    temperature: float = 5.0
    inner_steps: int = 5
    inner_lr: float = 1e-2
    outer_steps: int = 10
    outer_lr: float = 0.1
    sparsity: float = 0.1
    sharpness: float = 10.0

    def __post_init__(self) -> None:
        for name in ("temperature", "inner_steps", "inner_lr", "outer_steps", "outer_lr", "sharpness"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected a positive number, got {getattr(self, name)}.")
        if self.sparsity < 0:
            raise InputError(f"sparsity: expected 0 or more, got {self.sparsity}.")


def divergence(target_BC: Tensor, logits_BC: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(logits / T)) of each example (B); exactly zero where they are equal."""
    log_p_BC = torch.log_softmax(target_BC / temperature, dim=1)
    log_q_BC = torch.log_softmax(logits_BC / temperature, dim=1)
    return temperature**2 * (log_p_BC.exp() * (log_p_BC - log_q_BC)).sum(dim=1)


def free_masks(
    tail: Tail, mixed_BND: Tensor, target_BC: Tensor, slots: Sequence[Slot], *, options: MetaOptions
) -> Tensor:
    """The free parameters v (B, K) of each episode's mask: minimize D(m * d_K) + sparsity * mean|m| over v.

    D is the divergence of the edited model's logits on the mixed image from the model's own on the whole image; d_K
    are the displacements after K inner steps d <- d - lr * dD/dd, which count as constants (first order).

    mixed_BND: tokens of the mixed images at the tail's first block. target_BC: logits of the whole ones. Episodes
    don't meet: a batch gives what a loop gives, to rounding (tests/editing/test_meta.py).
    """
    target_BC = target_BC.detach()
    total = sum(slot.size for slot in slots)
    v_BK = mixed_BND.new_zeros(len(mixed_BND), total)
    optimizer = torch.optim.RMSprop([v_BK.requires_grad_()], lr=options.outer_lr)
    for _ in range(options.outer_steps):
        m_BK = torch.sigmoid(options.sharpness * v_BK)
        moved = _inner(tail, mixed_BND, target_BC, split(m_BK.detach(), slots), slots, options)
        with torch.enable_grad():
            logits_BC = tail.logits(mixed_BND, masked(moved, split(m_BK, slots), slots))
            loss = divergence(target_BC, logits_BC, options.temperature).sum()
            loss = loss + options.sparsity * m_BK.mean(dim=1).sum()
            (v_BK.grad,) = torch.autograd.grad(loss, [v_BK])
        optimizer.step()
    return v_BK.detach()


def _inner(
    tail: Tail,
    mixed_BND: Tensor,
    target_BC: Tensor,
    masks: dict[str, Tensor],
    slots: Sequence[Slot],
    options: MetaOptions,
) -> dict[str, Tensor]:
    """Displacements (B, out, in) after the inner steps."""
    moved = {slot.name: mixed_BND.new_zeros(len(mixed_BND), *slot.shape) for slot in slots}
    for _ in range(options.inner_steps):
        leaves = {name: delta.requires_grad_() for name, delta in moved.items()}
        with torch.enable_grad():
            logits_BC = tail.logits(mixed_BND, masked(leaves, masks, slots))
            loss = divergence(target_BC, logits_BC, options.temperature).sum()
            found = torch.autograd.grad(loss, list(leaves.values()))
        moved = {
            name: (delta - options.inner_lr * gradient).detach()
            for (name, delta), gradient in zip(leaves.items(), found, strict=True)
        }
    return moved


def soft_targets(v_BK: Tensor, *, sharpness: float = 3.0) -> Tensor:
    """What the hypernetwork is fitted to: sigmoid(3 v)."""
    return torch.sigmoid(sharpness * v_BK)


def fit_loss(scores: dict[str, Tensor], target_BK: Tensor, slots: Sequence[Slot], *, sharpness: float = 3.0) -> Tensor:
    """Binary cross entropy of sigmoid(3 * score) against the targets, over all neurons alike."""
    logits_BK = sharpness * torch.cat([scores[slot.name] for slot in slots], dim=1)
    return F.binary_cross_entropy_with_logits(logits_BK, target_BK)
