"""Free masks against a loop and torch's optimizers, CutMix pixels, and the divergence."""

from __future__ import annotations

import pytest
import torch
from tiny_edits import make_tiny
from tiny_vits import images

from privshard.core.errors import InputError
from privshard.editing.episodes import cutmix
from privshard.editing.masks import split
from privshard.editing.meta import MetaOptions, divergence, free_masks, soft_targets
from privshard.editing.places import masked


def test_divergence_is_zero_only_where_predictions_agree():
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert not divergence(logits, logits, 5.0).any()
    expected = 25 * torch.nn.functional.kl_div(
        torch.log_softmax(logits.roll(1, 0) / 5, 1), torch.log_softmax(logits / 5, 1), log_target=True, reduction="none"
    ).sum(1)
    torch.testing.assert_close(divergence(logits, logits.roll(1, 0), 5.0), expected)


def mixed_pair(tiny):
    mixed = cutmix(tiny.images, patch_size=(16, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return tiny.view.tokens(mixed, first_block=1), tiny.tail.logits(tiny.tokens, {})


def test_a_batch_of_episodes_is_a_loop_over_them(tiny):
    tokens, target = mixed_pair(tiny)
    options = MetaOptions(inner_lr=0.1, sparsity=0.01)
    together = free_masks(tiny.tail, tokens, target, tiny.slots, options=options)
    for at in range(4):
        alone = free_masks(tiny.tail, tokens[at : at + 1], target[at : at + 1], tiny.slots, options=options)
        torch.testing.assert_close(together[at : at + 1], alone, rtol=1e-5, atol=1e-7)


def test_one_outer_step_is_the_first_order_gradient_by_hand(tiny):
    """d is a constant of the outer step, the mask is not: one episode, neuron by neuron with autograd on the tail."""
    tokens, target = mixed_pair(tiny)
    tokens, target = tokens[:1], target[:1]
    options = MetaOptions(outer_steps=1, inner_steps=3, inner_lr=0.05, sparsity=0.3)
    mask = {slot.name: torch.full((1, slot.size), 0.5, dtype=torch.float64) for slot in tiny.slots}
    moved = {slot.name: torch.zeros(1, *slot.shape, dtype=torch.float64) for slot in tiny.slots}
    for _ in range(3):
        leaves = {name: delta.clone().requires_grad_() for name, delta in moved.items()}
        divergence(target, tiny.tail.logits(tokens, masked(leaves, mask, tiny.slots)), 5.0).sum().backward()
        moved = {name: (leaf - 0.05 * leaf.grad).detach() for name, leaf in leaves.items()}
    free = {name: torch.zeros_like(value).requires_grad_() for name, value in mask.items()}
    soft = {name: torch.sigmoid(10 * value) for name, value in free.items()}
    loss = divergence(target, tiny.tail.logits(tokens, masked(moved, soft, tiny.slots)), 5.0).sum()
    total = sum(value.numel() for value in soft.values())
    (loss + 0.3 * sum(value.sum() for value in soft.values()) / total).backward()
    optimizer = torch.optim.RMSprop(list(free.values()), lr=0.1)
    optimizer.step()
    got = split(free_masks(tiny.tail, tokens, target, tiny.slots, options=options), tiny.slots)
    for name, value in free.items():
        torch.testing.assert_close(got[name], value.detach(), rtol=1e-6, atol=1e-9)


def test_sparsity_alone_empties_masks_and_use_fills_them(tiny):
    tokens, target = mixed_pair(tiny)
    empty = free_masks(tiny.tail, tokens, target, tiny.slots, options=MetaOptions(sparsity=1e6))
    full = free_masks(tiny.tail, tokens, target, tiny.slots, options=MetaOptions(sparsity=0.0, inner_lr=0.01))
    assert (empty < 0).all()
    assert (full > 0).double().mean() > 0.8


def test_cutmix_pastes_whole_patches_of_another_image_at_the_same_place():
    model = make_tiny().model
    pixels = images(6, model).repeat(1, 1, 7, 7)  # 14 x 14 patches of 16
    mixed = cutmix(pixels, patch_size=(16, 16), generator=torch.Generator().manual_seed(0))
    sides = set()
    for at in range(6):
        changed = (mixed[at] != pixels[at]).any(0)
        rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
        box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        assert all(edge % 16 == 0 for edge in (box[0].start, box[0].stop, box[1].start, box[1].stop))
        assert any(torch.equal(mixed[at][:, *box], pixels[other][:, *box]) for other in range(6) if other != at)
        sides.add(box[0].stop - box[0].start)
    assert sides <= set(range(48, 129, 16))
    assert len(sides) > 1


def test_one_image_cannot_be_mixed(tiny):
    with pytest.raises(InputError, match="at least two images"):
        cutmix(tiny.images[:1], patch_size=(16, 16), generator=torch.Generator())


def test_neurons_of_a_free_mask_are_wanted_and_others_are_not():
    expected = torch.tensor([1 / (1 + 2.718281828459045**3), 0.5, 1 / (1 + 2.718281828459045**-3)])
    torch.testing.assert_close(soft_targets(torch.tensor([-1.0, 0.0, 1.0])), expected)
