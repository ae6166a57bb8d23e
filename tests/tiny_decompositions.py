"""Tiny models to decompose, with every weight at random, and decompositions of them."""

from __future__ import annotations

import numpy as np
from tiny_vits import tiny_vit
from torch import nn

from privshard.decomposition.basis import Basis
from privshard.decomposition.files import Decomposition
from privshard.decomposition.start import fit
from privshard.models.architecture import Architecture
from privshard.models.build import build_model

VIT = Architecture("vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 24}, 5, ("a", "b", "c", "d", "e"))
SWIN = Architecture(
    "swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 24, "num_heads": [1, 2, 2, 2]}, 5, None
)


def state_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The model's weights in single precision."""
    return {name: tensor.detach().float().numpy().copy() for name, tensor in model.state_dict().items()}


def vit(depth: int = 6) -> nn.Module:
    """The model that `VIT` describes, at a depth."""
    return tiny_vit(depth=depth).float().eval()


def swin() -> nn.Module:
    """A Swin of stages of 2, 2, 4 and 2 blocks."""
    return build_model(SWIN.model, {**SWIN.args, "depths": (2, 2, 4, 2)}, num_classes=5).eval()


def decomposition(depth: int = 6, components: int = 6, *, basis: Basis = Basis()) -> Decomposition:  # noqa: B008
    """Components fitted to `vit(depth)`."""
    return fit(state_of(vit(depth)), VIT, basis=basis, components=components).decomposition
