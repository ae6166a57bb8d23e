"""Places and slots: short forms, sizes from the model, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_vits import tiny_vit

from privshard.core.errors import InputError
from privshard.editing.places import Place, check_places, default_places, masked, parse_places, slots_of
from privshard.models.vit import view_vit


def test_short_form_and_back():
    places = parse_places("ffn:8-10,attention:9", depth=12)
    assert [str(place) for place in places] == ["ffn:8", "attention:9", "ffn:9", "ffn:10"]
    assert parse_places(",".join(map(str, places)), depth=12) == places


@pytest.mark.parametrize("text", ["", "ffn", "mlp:1", "ffn:x", "ffn:1-y", "ffn:-1", "ffn:3", "ffn:2-1"])
def test_what_is_no_place_is_refused(text):
    with pytest.raises(InputError, match="places: expected"):
        parse_places(text, depth=3)


def test_blocks_that_are_not_linearized_are_refused():
    with pytest.raises(InputError, match="expected blocks 2 to 2"):
        check_places([Place(1, "ffn")], depth=3, first_block=2)


def test_defaults_are_the_papers_for_twelve_blocks_and_fit_small_models():
    assert [str(place) for place in default_places(12)] == ["ffn:8", "ffn:9", "ffn:10"]
    assert [str(place) for place in default_places(2)] == ["ffn:0"]
    assert [str(place) for place in default_places(1)] == ["ffn:0"]


@pytest.mark.parametrize(("family", "width"), [("vit", 24), ("clip", 24), ("no_class_token", 24)])
def test_sizes_are_the_models(family, width):
    view = view_vit(tiny_vit(family))
    slots = {slot.name: slot for slot in slots_of(view, parse_places("ffn:1,attention:1", depth=3))}
    assert (
        slots["blocks.1.mlp.fc1.weight"].size
        == slots["blocks.1.mlp.fc2.weight"].size
        == view.blocks[1].fc1.out_features
    )
    assert (slots["blocks.1.attn.qkv.weight"].size, slots["blocks.1.attn.proj.weight"].size) == (3 * width, width)
    for name, slot in slots.items():
        assert slot.shape == tuple(dict(view.model.named_parameters())[name].shape)


def test_masks_act_on_rows_of_fc1_and_columns_of_fc2():
    view = view_vit(tiny_vit())
    slots = slots_of(view, parse_places("ffn:1", depth=3))
    masks = {slot.name: torch.zeros(1, slot.size) for slot in slots}
    for mask in masks.values():
        mask[0, 5] = 1
    moved = masked({slot.name: torch.ones(1, *slot.shape) for slot in slots}, masks, slots)
    assert moved["blocks.1.mlp.fc1.weight"][0].nonzero()[:, 0].unique().tolist() == [5]
    assert moved["blocks.1.mlp.fc2.weight"][0].nonzero()[:, 1].unique().tolist() == [5]
    assert all(delta.sum() == 24 for delta in moved.values())
