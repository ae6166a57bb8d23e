"""The adapters that every test of tests/adaptation/test_method.py runs on: name -> how to make it on a base."""

from __future__ import annotations

from collections.abc import Callable

from privshard.adaptation.adapter import Adapter
from privshard.adaptation.bitfit import BitFitAdapter
from privshard.adaptation.full import FullAdapter
from privshard.adaptation.gift.adapter import GiftAdapter
from privshard.adaptation.gift.spec import GiftSpec
from privshard.adaptation.lora import LoraAdapter
from privshard.adaptation.prompts import PromptsAdapter
from privshard.models.vit import ViTView

ADAPTERS: dict[str, Callable[[ViTView], Adapter]] = {
    "bitfit": BitFitAdapter,
    "full": FullAdapter,
    "full last": lambda view: FullAdapter(view, blocks=1),
    "lora": lambda view: LoraAdapter(view, rank=3, alpha=6.0),
    "lora all": lambda view: LoraAdapter(view, rank=8, targets=("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "gift": lambda view: GiftAdapter(view, GiftSpec(rank=3)),
    "gift paca": lambda view: GiftAdapter(
        view, GiftSpec(generator="paca", rank=3, clusters=4, layers=("attn.v", "mlp.fc1"), sharing="kind")
    ),
    "prompts": lambda view: PromptsAdapter(view, tokens=2),
}
