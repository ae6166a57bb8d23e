"""Coordinates in which the head's input is centred: what methods with a linear head share.

D width. W (feature - mean) + b equals W feature + (b - W mean), so a displacement moves between the two coordinates by
its bias alone, and the set of models that can be reached is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from privshard.models.vit import ViTView


def feature_radius(view: ViTView) -> float | None:
    """The root mean square norm of a feature g * n + c whose normalized n has variance one in every direction:
    a public constant of the base. None without a final norm, without a bias in the head, and for two heads."""
    norm = view.fc_norm if view.fc_norm is not None else view.norm
    if norm is None or view.head.bias is None or view.head_dist is not None:
        return None
    weight_D, bias_D = norm.weight.detach().double(), norm.bias.detach().double()
    return float((weight_D.square().sum() + bias_D.square().sum()).sqrt())


def uncenter_head(displacement: Mapping[str, Tensor], mean_D: Tensor) -> dict[str, Tensor]:
    """The displacement of the plain head that acts as `displacement` does on centred features."""
    weight, bias = displacement["head.weight"], displacement["head.bias"]
    shift = weight.double() @ mean_D.to(weight.device, torch.float64)
    return {**displacement, "head.bias": (bias.double() - shift).to(bias.dtype)}


def center_head(displacement: Mapping[str, Tensor], mean_D: Tensor) -> dict[str, Tensor]:
    """The inverse of `uncenter_head`: what acts on centred features as `displacement` does on plain ones."""
    return uncenter_head(displacement, -mean_D)
