"""LoRA as an editor: peft's adapters on a copy of the model, one pair of low-rank matrices an edit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from privshard.core.errors import ResourceError
from privshard.editing.functional import learn_parameters, start_from, unfused
from privshard.editing.learn import LearnOptions
from privshard.editing.places import Slot

_A, _B = "lora_A.default.weight", "lora_B.default.weight"


def learn_low_rank(
    model: nn.Module,
    images: Tensor,
    labels_B: Tensor,
    slots: Sequence[Slot],
    *,
    rank: int,
    options: LearnOptions,
    seed: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """W + (alpha / rank) B A with alpha = rank, trained on each image by itself: (B, out, in) by name, and the steps.

    `model` is not changed. peft initializes A at random (from `seed`) and B at zero, so an edit starts at the model.
    Equal to peft's own merged weights (tests/editing/test_low_rank.py). ResourceError where peft is not installed.
    """
    adapted = adapters(model, [slot.name.removesuffix(".weight") for slot in slots], rank=rank, seed=seed)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name}
    start = start_from(adapted, trained, num=len(images))
    found, steps_B = learn_parameters(adapted, images, labels_B, start, options=options)
    moved = {}
    for slot in slots:
        prefix = next(name.removesuffix(_A) for name in trained if f"{slot.name.removesuffix('.weight')}.{_A}" in name)
        moved[slot.name] = found[prefix + _B] @ found[prefix + _A]
    return moved, steps_B


def adapters(model: nn.Module, modules: Sequence[str], *, rank: int, seed: int) -> Any:
    """A copy of `model` with peft's adapters on the named modules."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ResourceError(
            "LoRA: expected the package peft, found none.", remedy="Install it: pip install 'privshard[lora]'."
        ) from error
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, bias="none", target_modules=list(modules))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return unfused(get_peft_model(copy.deepcopy(model), config)).eval()  # pyright: ignore[reportArgumentType]
