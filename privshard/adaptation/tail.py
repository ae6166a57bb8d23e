"""The frozen network from where an adapter first changes it, evaluated with changed weights or extra tokens.

B batch, N tokens, P prompts, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from privshard.adaptation.adapter import PROMPTS, prompt_name
from privshard.models.vit import ViTView

_PREFIX = "model."


class Tail(nn.Module):
    """From the tokens that enter `first_block` (None: from images) to the head's input.

    It holds the base itself, not a copy, and never writes to it.
    """

    def __init__(self, view: ViTView, *, first_block: int | None) -> None:
        super().__init__()
        self.view = view
        self.model = view.model
        self.first_block = first_block

    def forward(self, x: Tensor, prompts: Mapping[str, Tensor]) -> Tensor:
        """The head's input (B, D)."""
        if self.first_block is None:
            x = self.view.tokens(x, first_block=0)
        for index in range(self.first_block or 0, len(self.view.blocks)):
            block, tokens = self.view.blocks[index].module, prompts.get(prompt_name(index))
            x = block(x) if tokens is None else self._with_prompts(block, x, tokens)
        return self.model.forward_head(self.model.norm(x), pre_logits=True)

    def _with_prompts(self, block: nn.Module, x_BND: Tensor, prompts_PD: Tensor) -> Tensor:
        """One block that also attends to prompts, which come after the prefix tokens and don't leave the block."""
        prefix = self.model.num_prefix_tokens
        joined = prompts_PD.to(x_BND.dtype).expand(len(x_BND), -1, -1)
        out = block(torch.cat([x_BND[:, :prefix], joined, x_BND[:, prefix:]], dim=1))
        return torch.cat([out[:, :prefix], out[:, prefix + len(prompts_PD) :]], dim=1)


def features(tail: Tail, x: Tensor, changed: Mapping[str, Tensor]) -> Tensor:
    """The head's input (B, D) with changed values by the base's names, differentiable in them."""
    prompts = {name: value for name, value in changed.items() if name.startswith(PROMPTS)}
    values = {_PREFIX + name: value for name, value in changed.items() if name not in prompts}
    return torch.func.functional_call(tail, values, (x, prompts))


@contextmanager
def recorded(tail: Tail, names: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, GradientEdge]]]:
    """While the context lasts, what the named layers multiply by their parameters and give: name -> (a, edge).

    a is the input of a layer, for a LayerNorm its normalized input; edge is where the gradient of its output comes by.
    The graph begins at the first named layer, and no output is kept: nothing else would need it.
    """
    found: dict[str, tuple[Tensor, GradientEdge]] = {}

    def keep(name: str):
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            a = given[0].detach()
            if isinstance(module, nn.LayerNorm):
                a = F.layer_norm(a, module.normalized_shape, eps=module.eps)
            if not out.requires_grad:
                out.requires_grad_()
            found[name] = (a, get_gradient_edge(out))

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = tail.model.get_submodule(name).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        yield found
