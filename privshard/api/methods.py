"""The methods by name: from a recipe's choice to something that trains. Imports torch and timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from privshard.core.jobs import MethodSpec
from privshard.core.method import Method
from privshard.models.vit import ViTView
from privshard.tangent.engine import tangent_engine
from privshard.training.head import HeadMethod

_FACTORIES: Mapping[str, Callable[[ViTView, Mapping[str, Any]], Method]] = {
    "tangent": lambda view, options: tangent_engine(view, blocks=options.get("blocks", 1)),
    "head": lambda view, options: HeadMethod(view),
}


def make_method(spec: MethodSpec, view: ViTView) -> Method:
    """The method that `spec` names, on this base."""
    return _FACTORIES[spec.name](view, spec.options)
