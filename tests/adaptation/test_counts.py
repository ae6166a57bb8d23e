"""How many numbers each adapter trains on ViT-B/16: the counts of the papers."""

from __future__ import annotations

import pytest
import timm
import torch

from privshard.adaptation.bitfit import BitFitAdapter
from privshard.adaptation.full import FullAdapter
from privshard.adaptation.lora import LoraAdapter
from privshard.adaptation.prompts import PromptsAdapter
from privshard.core.errors import InputError
from privshard.models.vit import view_vit


@pytest.fixture(scope="module")
def vit_base():
    with torch.device("meta"):
        return view_vit(timm.create_model("vit_base_patch16_224", num_classes=10))


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda view: LoraAdapter(view, rank=8), 147_456),
        (BitFitAdapter, 82_944),
        (lambda view: PromptsAdapter(view, tokens=5), 46_080),
        (FullAdapter, 85_798_656),
        (lambda view: FullAdapter(view, blocks=1), 7_087_872 + 2 * 768),
    ],
)
def test_counts_on_vit_base(vit_base, make, count):
    assert make(vit_base).num_parameters() == count


def test_the_count_is_that_of_the_parameters_that_training_starts_from():
    view = view_vit(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3))
    for make in (LoraAdapter, BitFitAdapter, PromptsAdapter, FullAdapter):
        adapter = make(view)
        assert adapter.num_parameters() == sum(value.numel() for value in adapter.initial(0).values())


def test_a_model_without_biases_and_no_prompts_are_refused():
    options = {"img_size": 32, "depth": 1, "num_classes": 3}
    view = view_vit(timm.create_model("vit_tiny_patch16_224", **options))
    for block in view.blocks:
        for part in (block.qkv, block.proj, block.fc1, block.fc2):
            part.bias = None
    with pytest.raises(InputError, match="bitfit"):
        BitFitAdapter(view)
    with pytest.raises(InputError, match=r"method\.tokens.*got 0"):
        PromptsAdapter(view, tokens=0)
    with pytest.raises(InputError, match="1 to 1"):
        FullAdapter(view, blocks=2)
