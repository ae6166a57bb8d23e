"""The other editors: rank one, heads, LoRA and full fine-tuning, against what they say they do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_edits import make_tiny

from privshard.core.errors import InputError
from privshard.editing.functional import learn_parameters, predict_with, start_from, unfused
from privshard.editing.heads import head_masks
from privshard.editing.learn import LearnOptions
from privshard.editing.low_rank import adapters, learn_low_rank
from privshard.editing.masks import gradient_scores
from privshard.editing.places import parse_places, slots_of
from privshard.editing.rank_one import keys, learn_rank_one, second_moment


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_a_rank_one_edit_gives_its_key_the_new_value_and_others_none(family):
    tiny = make_tiny(family)
    block = tiny.view.blocks[1]
    moment = second_moment(block, tiny.tokens)
    moved, steps = learn_rank_one(
        tiny.view,
        tiny.tokens,
        tiny.labels,
        block=1,
        moment_KK=moment,
        ridge=1e-3,
        options=LearnOptions(lr=0.05, steps=300),
    )
    delta = moved["blocks.1.mlp.fc2.weight"]
    key = keys(block, tiny.tokens)[:, 0]
    assert (steps > 0).all()
    for at in range(4):
        assert torch.linalg.matrix_rank(delta[at], rtol=1e-8) == 1
        # orthogonal, in the inner product of C^-1, to the edited key: such keys keep their value
        inverse = torch.linalg.inv(moment + torch.eye(96, dtype=torch.float64) * 1e-3 * moment.diagonal().mean())
        other = key[(at + 1) % 4] - key[at] * (key[at] @ inverse @ key[(at + 1) % 4]) / (key[at] @ inverse @ key[at])
        assert (delta[at] @ other).abs().max() < 1e-8 * delta[at].abs().max() * other.norm()
    logits = tiny.tail.logits(tiny.tokens, moved)
    assert torch.equal(logits.argmax(1), tiny.labels)


def test_the_second_moment_is_a_mean_over_tokens(tiny):
    block = tiny.view.blocks[1]
    rows = keys(block, tiny.tokens).flatten(0, 1)
    expected = sum(torch.outer(row, row) for row in rows) / len(rows)
    torch.testing.assert_close(second_moment(block, tiny.tokens), expected)


def test_rank_one_needs_a_class_token():
    tiny = make_tiny("avg_pool")
    with pytest.raises(InputError, match="class token"):
        learn_rank_one(
            tiny.view, tiny.tokens, tiny.labels, block=1, moment_KK=torch.eye(96), ridge=1.0, options=LearnOptions()
        )


def test_heads_are_kept_whole():
    tiny = make_tiny("clip", places="attention:1-2")  # 4 heads of 6
    scores = gradient_scores(tiny.tail, tiny.tokens, tiny.labels, tiny.slots)
    masks = head_masks(tiny.view, scores, 0.25, tiny.slots)
    for row in range(4):
        heads = []
        for name in ("blocks.1", "blocks.2"):
            qkv = masks[f"{name}.attn.qkv.weight"][row].view(3, 4, 6)
            proj = masks[f"{name}.attn.proj.weight"][row].view(4, 6)
            assert all(torch.equal(part, proj) for part in qkv)
            assert ((proj == 0).all(1) | (proj == 1).all(1)).all()
            total = scores[f"{name}.attn.qkv.weight"][row].view(3, 4, 6).sum((0, 2))
            total = total + scores[f"{name}.attn.proj.weight"][row].view(4, 6).sum(1)
            heads += zip(total.tolist(), proj[:, 0].tolist(), strict=True)
        assert [kept for _, kept in sorted(heads, reverse=True)] == [1.0, 1.0] + [0.0] * 6
    with pytest.raises(InputError, match="at least one of 8 heads"):
        head_masks(tiny.view, scores, 0.01, tiny.slots)
    ffn = slots_of(tiny.view, parse_places("ffn:1", depth=3))
    with pytest.raises(InputError, match="of kind attention"):
        head_masks(tiny.view, {slot.name: torch.ones(1, slot.size) for slot in ffn}, 0.5, ffn)


def test_full_fine_tuning_in_a_batch_is_rmsprop_by_itself():
    tiny = make_tiny()
    model, options = unfused(copy.deepcopy(tiny.model)), LearnOptions(lr=1e-3, steps=6, stop_early=False)
    found, steps = learn_parameters(
        model, tiny.images, tiny.labels, start_from(model, dict(model.named_parameters()), num=4), options=options
    )
    alone = copy.deepcopy(tiny.model).requires_grad_(True)
    optimizer = torch.optim.RMSprop(alone.parameters(), lr=1e-3)
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(alone(tiny.images[2:3]), tiny.labels[2:3]).backward()
        optimizer.step()
    assert steps.tolist() == [6] * 4
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(found[name][2], parameter.detach(), rtol=1e-6, atol=1e-9)
    own = {name: value[2] for name, value in found.items()}
    assert torch.equal(predict_with(model, own, tiny.images), alone(tiny.images).argmax(1))


def test_low_rank_edits_are_pefts_and_end_when_right():
    pytest.importorskip("peft", reason="the optional extra lora is not installed")
    tiny = make_tiny(dtype=torch.float32)
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    moved, steps = learn_low_rank(
        tiny.model,
        tiny.images,
        tiny.labels,
        tiny.slots,
        rank=2,
        options=LearnOptions(lr=1e-2, steps=60, loss_below=0.5),
    )
    assert (steps < 60).all()
    assert torch.equal(tiny.tail.logits(tiny.tokens, moved).argmax(1), tiny.labels)
    assert all(torch.linalg.matrix_rank(delta[0]) == 2 for delta in moved.values())
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    adapted = adapters(tiny.model, [slot.name.removesuffix(".weight") for slot in tiny.slots], rank=2, seed=0)
    assert torch.equal(adapted(tiny.images), unfused(copy.deepcopy(tiny.model))(tiny.images))
