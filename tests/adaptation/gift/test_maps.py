"""Maps against their formula pixel by pixel, and what is shown of them."""

from __future__ import annotations

import pytest
import torch
from tiny_vits import images, tiny_vit

from privshard.adaptation.gift import maps
from privshard.adaptation.gift.layers import target_layers
from privshard.models.vit import freeze, view_vit


@pytest.mark.parametrize("family", ["vit", "registers", "no_class_token"])
def test_outputs_are_those_of_the_layer_under_changed_weights(family):
    model = freeze(tiny_vit(family))
    view = view_vit(model)
    layers = target_layers(view, ["blocks.1.attn.v", "blocks.2.mlp.fc2"])
    x, name = images(2, model), "blocks.0.mlp.fc1.weight"
    changed = {name: 2 * view.blocks[0].fc1.weight}
    found = maps.layer_outputs(view, x, layers, changed=changed)
    model.load_state_dict({name: 2 * view.blocks[0].fc1.weight}, strict=False)
    prefix = model.num_prefix_tokens
    tokens = view.tokens(x, first_block=1)
    v = view.blocks[1].qkv(view.blocks[1].norm1(tokens))[:, prefix:, 48:]
    torch.testing.assert_close(found["blocks.1.attn.v"], v)
    assert found["blocks.2.mlp.fc2"].shape == (2, 4, 24)


def test_a_map_is_the_output_along_a_vector_on_the_grid():
    outputs, vectors = torch.randn(2, 6, 5), torch.randn(5, 3)
    found = maps.patch_maps(outputs, vectors, grid=(2, 3))
    assert found.shape == (2, 3, 2, 3)
    torch.testing.assert_close(found[1, 2, 1, 0], outputs[1, 3] @ vectors[:, 2])


def test_pixels_are_bilinear_and_span_zero_to_one():
    patches = torch.tensor([[[[1.0, 3.0], [1.0, 3.0]]]])
    found = maps.pixel_maps(patches, size=(4, 8))[0, 0]
    # the centre of pixel j lies at (j + 1/2) / 4 - 1/2 patches; outside the outer centres the map is flat
    across = [min(max((j + 0.5) / 4 - 0.5, 0.0), 1.0) for j in range(8)]
    torch.testing.assert_close(found, torch.tensor([across] * 4))
    assert found.min() == 0
    assert found.max() == 1


def test_a_constant_map_is_zero_and_leaves_the_others():
    patches = torch.stack([torch.full((2, 2), 7.0), torch.tensor([[0.0, 1.0], [2.0, 3.0]])])[None]
    found = maps.pixel_maps(patches, size=(8, 8))
    assert not found[0, 0].any()
    assert found[0, 1].max() == 1
    assert torch.isfinite(found).all()


def test_below_the_threshold_nothing_is_shown():
    found = maps.shown(torch.tensor([[[[0.0, 0.49, 0.5, 1.0]]]]))
    assert found.flatten().tolist() == [0.0, 0.0, 0.5, 1.0]
