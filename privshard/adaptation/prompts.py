"""Deep visual prompts: trainable tokens that join the input of every block.

On ViT-B/16 five tokens a block are 46,080 numbers. P prompts, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from privshard.adaptation.adapter import Seen, prompt_name
from privshard.core.displacement import Space
from privshard.core.errors import InputError
from privshard.models.vit import ViTView
from privshard.tangent.places import Direct, Outer


class PromptsAdapter:
    """`privshard.adaptation.adapter.FactoredAdapter` of P tokens at the input of every block (Jia et al., 2022, deep).

    Block l reads the prefix tokens (class token, registers), its own P prompts, then the patches; its outputs at the
    prompts are dropped. Prompts start at uniform numbers within sqrt(6 / (3 p^2 + D)), p the patch size, drawn from a
    public seed.

    Space "prompt": tokens are no displacement of weights, and no tokens leave the base as it is (zeros take part in the
    attention). So the base is the model without them, an average of components is a model with averaged tokens, whose
    weights must sum to one, and sums or edits of prompts mean nothing and are refused.

    tokens: P, 1 or more.
    """

    name = "prompts"
    space: Space = "prompt"
    first_block = 0
    reads_inputs = False

    def __init__(self, view: ViTView, *, tokens: int = 5) -> None:
        if tokens < 1:
            raise InputError(f"method.tokens: expected 1 or more, got {tokens}.")
        width = view.model.embed_dim
        self._shapes = {prompt_name(index): (tokens, width) for index in range(len(view.blocks))}
        height_width = view.model.patch_embed.patch_size
        self._bound = math.sqrt(6 / (3 * math.prod(height_width) + width))

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Uniform tokens."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: (2 * torch.rand(shape, generator=generator) - 1) * self._bound for name, shape in self._shapes.items()
        }

    def changed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tokens."""
        return dict(parameters)

    def displacement(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tokens."""
        return dict(parameters)

    def num_parameters(self) -> int:
        """All tokens together."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def layers(self) -> tuple[str, ...]:
        """No layer changes."""
        return ()

    def places(self, parameters: Mapping[str, Tensor], seen: Mapping[str, Seen]) -> Sequence[Outer | Direct]:
        """The cotangent of each example's own copy of the tokens, row by row."""
        return [
            Outer(name, seen[name].b.new_ones(*seen[name].b.shape[:2], 1).unsqueeze(1), seen[name].b.unsqueeze(1))
            for name in self._shapes
        ]
