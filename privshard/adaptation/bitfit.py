"""BitFit: the biases of the blocks' linear layers move, and nothing else.

On ViT-B/16 these are 82,944 numbers: the biases of qkv (2,304), proj (768), fc1 (3,072) and fc2 (768) in 12 blocks. The
biases of the layer norms, which would add 18,432, stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from privshard.adaptation.adapter import Seen
from privshard.core.displacement import Space
from privshard.core.errors import InputError
from privshard.models.vit import ViTView
from privshard.tangent.places import Direct, Outer

_LAYERS = ("qkv", "proj", "fc1", "fc2")


class BitFitAdapter:
    """`privshard.adaptation.adapter.FactoredAdapter` of the linear layers' biases, b' = b + d.

    Zaken, Ravfogel and Goldberg (2022). The gradient of a bias is the sum of the output's cotangent over tokens.
    Raises InputError for a model without such biases.
    """

    name = "bitfit"
    space: Space = "weight"
    first_block = 0
    reads_inputs = False

    def __init__(self, view: ViTView) -> None:
        self._biases: dict[str, Tensor] = {}
        for block in view.blocks:
            modules = {f"{block.name}.{name}": part for name, part in block.parts().items()}
            for name, module in modules.items():
                if name.rsplit(".", 1)[1] in _LAYERS and module.bias is not None:
                    self._biases[name] = module.get_parameter("bias")
        if not self._biases:
            raise InputError(
                "method bitfit: expected linear layers with biases, got a model without any.",
                remedy="Choose another method, or a model with qkv_bias or proj_bias.",
            )

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Zero."""
        return {f"{name}.bias": torch.zeros(bias.shape) for name, bias in self._biases.items()}

    def changed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """b + d."""
        return {f"{name}.bias": bias + parameters[f"{name}.bias"] for name, bias in self._biases.items()}

    def displacement(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """d itself."""
        return dict(parameters)

    def num_parameters(self) -> int:
        """All biases together."""
        return sum(bias.numel() for bias in self._biases.values())

    def layers(self) -> tuple[str, ...]:
        """The linear layers."""
        return tuple(self._biases)

    def places(self, parameters: Mapping[str, Tensor], seen: Mapping[str, Seen]) -> Sequence[Outer | Direct]:
        """One vector a layer."""
        return [Direct(f"{name}.bias", layer.b.sum(dim=1)) for name, layer in seen.items()]
