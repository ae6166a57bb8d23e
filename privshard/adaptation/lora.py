"""LoRA: low-rank factors beside linear layers, with the configuration, start and scale of Hugging Face peft.

On ViT-B/16, rank 8 on the attention output projections is 147,456 numbers. r rank, O output and I input width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from privshard.adaptation.adapter import Seen
from privshard.adaptation.gradients import matrix_place
from privshard.adaptation.targets import target_layers
from privshard.core.displacement import Space
from privshard.core.errors import InputError
from privshard.models.vit import ViTView
from privshard.tangent.places import Direct, Outer

_ADAPTER = "default"


class LoraAdapter:
    """`privshard.adaptation.adapter.FactoredAdapter` of W' = W + (alpha / r) B A (Hu et al., 2022).

    A (r, I) starts as peft starts it, from a public seed; B (O, r) starts at zero. A component holds the products
    (alpha / r) B A: averages of factors are not factors of an average. Values and gradients are those of peft's own
    layers (tests/adaptation/test_lora.py).

    rank: r, from 1 to the narrower width. alpha > 0. targets: names of linear layers inside a block. Raises InputError
    where peft is not installed, for layers that don't exist and for a rank above their width.
    """

    name = "lora"
    space: Space = "weight"
    first_block = 0
    reads_inputs = True

    def __init__(
        self, view: ViTView, *, rank: int = 8, alpha: float = 8.0, targets: Sequence[str] = ("attn.proj",)
    ) -> None:
        if find_spec("peft") is None:
            raise InputError(
                "method lora: expected the package peft, which isn't installed.", remedy="pip install 'privshard[lora]'"
            )
        if not alpha > 0:
            raise InputError(f"method.alpha: expected a number above 0, got {alpha}.")
        self._rank, self._alpha, self._scale = rank, alpha, alpha / rank
        self._linears = target_layers(view, targets)
        for name, module in self._linears.items():
            width = min(module.in_features, module.out_features)
            if not 1 <= rank <= width:
                raise InputError(
                    f"method.rank: expected 1 to {width}, the width of {name}, got {rank}.",
                    remedy="Choose a lower one.",
                )

    def initial(self, seed: int) -> dict[str, Tensor]:
        """peft's own: A uniform after Kaiming and He, B zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            factors = self._peft_layers()
        start: dict[str, Tensor] = {}
        for name, module in factors.items():
            start[f"{name}.lora_A"] = module.lora_A[_ADAPTER].weight.detach().float()
            start[f"{name}.lora_B"] = module.lora_B[_ADAPTER].weight.detach().float()
        return start

    def changed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W + (alpha / r) B A."""
        found: dict[str, Tensor] = {}
        for name, module in self._linears.items():
            b_OR, a_RI = parameters[f"{name}.lora_B"], parameters[f"{name}.lora_A"]
            found[f"{name}.weight"] = torch.addmm(module.weight.to(b_OR.dtype), b_OR, a_RI, alpha=self._scale)
        return found

    def displacement(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(alpha / r) B A."""
        return {
            f"{name}.weight": self._scale * (parameters[f"{name}.lora_B"] @ parameters[f"{name}.lora_A"])
            for name in self._linears
        }

    def num_parameters(self) -> int:
        """Both factors of all layers."""
        return sum(self._rank * sum(module.weight.shape) for module in self._linears.values())

    def layers(self) -> tuple[str, ...]:
        """The target layers."""
        return tuple(self._linears)

    def places(self, parameters: Mapping[str, Tensor], seen: Mapping[str, Seen]) -> Sequence[Outer | Direct]:
        """dA: outer(scale B^T b_t, a_t). dB: outer(b_t, scale A a_t)."""
        found: list[Outer | Direct] = []
        for name in self._linears:
            one, a_RI, b_OR = seen[name], parameters[f"{name}.lora_A"], parameters[f"{name}.lora_B"]
            narrow_b = one.b @ (self._scale * b_OR).to(one.b.dtype)
            narrow_a = one.a @ (self._scale * a_RI).to(one.a.dtype).mT
            found.append(matrix_place(f"{name}.lora_A", narrow_b, one.a, dtype=a_RI.dtype))
            found.append(matrix_place(f"{name}.lora_B", one.b, narrow_a, dtype=b_OR.dtype))
        return found

    def _peft_layers(self) -> dict[str, Any]:
        """peft's LoRA layers of these shapes on the CPU, by the base's names, around layers without values."""
        from peft import LoraConfig, inject_adapter_in_model

        keys = {name: name.replace(".", "/") for name in self._linears}
        holder = nn.ModuleDict({keys[name]: _empty(module) for name, module in self._linears.items()})
        config = LoraConfig(
            r=self._rank,
            lora_alpha=self._alpha,  # pyright: ignore[reportArgumentType]  (any number does)
            target_modules=list(keys.values()),
        )
        injected = inject_adapter_in_model(config, holder, adapter_name=_ADAPTER)
        return {name: injected.get_submodule(key) for name, key in keys.items()}


def _empty(module: nn.Linear) -> nn.Module:
    """A linear layer of the same shape whose values are never set."""
    return nn.utils.skip_init(nn.Linear, module.in_features, module.out_features, bias=module.bias is not None)
