"""What one step holds and does in half precision, in exact counts, beside LoRA as peft and autograd train it."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from live_bytes import LiveBytes, live_bytes
from tiny_vits import NUM_CLASSES, images, tiny_vit
from torch import Tensor, nn

from privshard.adaptation.adapter import Adapter
from privshard.adaptation.bitfit import BitFitAdapter
from privshard.adaptation.gift.adapter import GiftAdapter
from privshard.adaptation.gift.spec import GiftSpec
from privshard.adaptation.lora import LoraAdapter
from privshard.adaptation.method import AdapterMethod
from privshard.core.method import initial
from privshard.models.vit import freeze, view_vit
from privshard.training.loss import cotangent

NUM, RANK = 8, 2
LABELS = torch.arange(NUM) % NUM_CLASSES
ADAPTERS = {
    "bitfit": BitFitAdapter,
    "lora": lambda view: LoraAdapter(view, rank=RANK),
    "lora qkv": lambda view: LoraAdapter(view, rank=RANK, targets=("attn.qkv",)),
    "gift": lambda view: GiftAdapter(view, GiftSpec(rank=RANK)),
}


@cache
def _model() -> nn.Module:
    """12 blocks and 65 tokens, so that what counts is what grows with them and with the batch."""
    return freeze(tiny_vit(dtype=torch.float32, img_size=128, depth=12))


@cache
def _images() -> Tensor:
    return images(NUM, _model())


@cache
def _peft(target: str) -> LiveBytes:
    """peft's own model under autograd; the head trains too."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[target])
    wrapped = get_peft_model(copy.deepcopy(_model()), config)  # pyright: ignore[reportArgumentType]
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_("lora_" in name or ".head." in name)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = wrapped(_images())
        torch.autograd.grad(nn.functional.cross_entropy(logits.float(), LABELS), trained)

    return live_bytes(step)


def _ours(adapter: Adapter, *, private: bool) -> LiveBytes:
    method = AdapterMethod(view_vit(_model()), adapter)
    parameters = initial(method, device="cpu")

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            constants = method.encode(_images())
            if private:
                logits, pullback = method.pull(constants, parameters)
                gradients = pullback(cotangent("cross_entropy", logits.float(), LABELS))
            else:
                logits, pull_back = method.pull_sum(constants, parameters)
        if private:
            gradients.weighted_sum(gradients.squared_norms(None, NUM))
        else:
            pull_back(cotangent("cross_entropy", logits.float(), LABELS))

    return live_bytes(step)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize(("private", "operations"), [(False, 1.05), (True, 1.6)])
def test_a_step_holds_no_more_than_lora_by_peft(kind: str, private: bool, operations: float):
    found = _ours(ADAPTERS[kind](view_vit(_model())), private=private)
    peer = _peft("attn.qkv" if kind == "lora qkv" else "attn.proj")
    assert found.peak <= 1.05 * peer.peak
    assert found.operations <= operations * peer.operations
