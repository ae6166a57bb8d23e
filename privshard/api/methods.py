"""The methods by name: from a recipe's choice to something that trains. Imports torch and timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from privshard.adaptation.adapter import Adapter
from privshard.adaptation.bitfit import BitFitAdapter
from privshard.adaptation.full import FullAdapter
from privshard.adaptation.gift.adapter import GiftAdapter
from privshard.adaptation.gift.spec import GiftSpec
from privshard.adaptation.lora import LoraAdapter
from privshard.adaptation.method import AdapterMethod
from privshard.adaptation.prompts import PromptsAdapter
from privshard.core.errors import InputError
from privshard.core.jobs import MethodSpec
from privshard.core.method import Method
from privshard.models.vit import ViTView
from privshard.tangent.engine import tangent_engine
from privshard.training.around import around
from privshard.training.head import HeadMethod


def _adapted(make: Callable[..., Adapter]) -> Callable[[ViTView, Mapping[str, Any]], Method]:
    """A factory of the adapter method, from one of an adapter; the option `seed` draws where its parameters start."""

    def factory(view: ViTView, options: Mapping[str, Any]) -> Method:
        own = {name: value for name, value in options.items() if name != "seed"}
        return AdapterMethod(view, make(view, **own), seed=options.get("seed", 0))

    return factory


_FACTORIES: Mapping[str, Callable[[ViTView, Mapping[str, Any]], Method]] = {
    "tangent": lambda view, options: tangent_engine(view, blocks=options.get("blocks", 1)),
    "head": lambda view, options: HeadMethod(view),
    "full": _adapted(FullAdapter),
    "lora": _adapted(LoraAdapter),
    "bitfit": _adapted(BitFitAdapter),
    "prompts": _adapted(PromptsAdapter),
    "gift": _adapted(lambda view, **options: GiftAdapter(view, GiftSpec.of(options))),
}


def engine_of(method: Method) -> str | None:
    """Which engine computes a method that has several, and why it was taken, for people; None for the others."""
    return getattr(method, "engine", None)


def make_method(spec: MethodSpec, view: ViTView, *, core: Mapping[str, Tensor] | None = None) -> Method:
    """The method that `spec` names, on this base, around its core where it has one. InputError where it doesn't know
    all of the base's heads."""
    if view.head_dist is not None and spec.name != "tangent":
        raise InputError(
            f"head_dist: expected a base with one head for the method {spec.name}, got a distilled one with two.",
            remedy="Use the method tangent, or a base without a distillation token.",
        )
    device = view.head.weight.device
    here = {name: tensor.to(device) for name, tensor in (core or {}).items()}
    return around(_FACTORIES[spec.name](view, spec.options), here)
