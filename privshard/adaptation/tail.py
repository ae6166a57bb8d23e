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
    """From the tokens that enter `first_block` to the head's input. It holds the base itself and never writes to it."""

    def __init__(self, view: ViTView, *, first_block: int) -> None:
        super().__init__()
        self.model = view.model
        self._blocks = [block.module for block in view.blocks]
        self._first = first_block

    def forward(self, x_BND: Tensor, prompts: Mapping[str, Tensor]) -> Tensor:
        """The head's input (B, D)."""
        for index, block in enumerate(self._blocks[self._first :], start=self._first):
            tokens = prompts.get(prompt_name(index))
            x_BND = block(x_BND) if tokens is None else self._with_prompts(block, x_BND, tokens)
        return self.model.forward_head(self.model.norm(x_BND), pre_logits=True)

    def _with_prompts(self, block: nn.Module, x_BND: Tensor, prompts: Tensor) -> Tensor:
        """One block that also attends to prompts (P, D) or (B, P, D), which come after the prefix tokens and end
        with the block."""
        prefix = self.model.num_prefix_tokens
        joined = prompts.to(x_BND.dtype).expand(len(x_BND), -1, -1)
        out = block(torch.cat([x_BND[:, :prefix], joined, x_BND[:, prefix:]], dim=1))
        return torch.cat([out[:, :prefix], out[:, prefix + joined.shape[1] :]], dim=1)


class Stem(nn.Module):
    """From images to the tokens that enter the first block. It holds the base itself and never writes to it."""

    def __init__(self, view: ViTView) -> None:
        super().__init__()
        self.model = view.model
        self._tokens = view.tokens

    def forward(self, images: Tensor) -> Tensor:
        """The tokens (B, N, D)."""
        return self._tokens(images, first_block=0)

    def parameter_names(self) -> tuple[str, ...]:
        """The parameters of the base that act here: all that are in no block, and not after them."""
        later = ("blocks.", "norm.", "fc_norm.", "head.")
        return tuple(name for name, _ in self.model.named_parameters() if not name.startswith(later))


def features(tail: Tail, x_BND: Tensor, changed: Mapping[str, Tensor]) -> Tensor:
    """The head's input (B, D) with changed values by the base's names, differentiable in them."""
    prompts = {name: value for name, value in changed.items() if name.startswith(PROMPTS)}
    values = {_PREFIX + name: value for name, value in changed.items() if name not in prompts}
    return torch.func.functional_call(tail, values, (x_BND, prompts), tie_weights=False)


def stem_tokens(stem: Stem, images: Tensor, changed: Mapping[str, Tensor]) -> Tensor:
    """The tokens (B, N, D) that enter the first block with changed values, differentiable in them."""
    values = {_PREFIX + name: value for name, value in changed.items() if not name.startswith(PROMPTS)}
    return torch.func.functional_call(stem, values, (images,), tie_weights=False)


@contextmanager
def recorded(
    tail: Tail, names: Sequence[str], *, inputs: bool
) -> Iterator[tuple[dict[str, Tensor], dict[str, GradientEdge]]]:
    """While the context lasts, what the named layers multiply by their parameters, and give: name -> a, name -> edge.

    a is the input of a layer, for a LayerNorm its normalized input; without `inputs`, none are kept. edge is where the
    gradient of its output comes by. The graph begins at the first named layer, and no output is kept: nothing else
    would need it.
    """
    given: dict[str, Tensor] = {}
    edges: dict[str, GradientEdge] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if inputs:
                given[name] = _multiplied(module, args[0].detach())
            if not out.requires_grad:
                out.requires_grad_()
            edges[name] = get_gradient_edge(out)

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = tail.model.get_submodule(name).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        yield given, edges


def _multiplied(module: nn.Module, x: Tensor) -> Tensor:
    """What a layer multiplies by its weight, in the type that it does so in."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
    kind = x.device.type
    if isinstance(module, nn.Linear) and x.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x
