"""A tied model: blocks that share components under fixed coefficients, trainable as they are.

Letters: L blocks, K components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from privshard.core.errors import InputError
from privshard.decomposition.expansion import combine, expand_tensor
from privshard.decomposition.files import Decomposition, open_decomposition
from privshard.decomposition.recompose import expanded, model_architecture, write_tied
from privshard.decomposition.stacks import args_with_depth
from privshard.models.build import build_model, load_weights_from


class TiedModel(nn.Module):
    """A timm model whose blocks hold no weights of their own: W_l = sum_n a(l, n) A_n with fixed a.

    decomposition: cut to the wanted depth and components, with one set of plain parts. frozen: the first so many
    components are buffers, the others parameters. The plain parts are parameters under timm's names, in `skeleton`.

    Guaranteed: in evaluation mode the blocks' weights are those of `export`, bit for bit; in training mode they are one
    matrix product, equal up to rounding, and gradients reach the components through it.

    Raises InputError where the decomposition doesn't fit timm's model, showing both sides.

    Test: tests/decomposition/test_tied.py.
    """

    def __init__(self, decomposition: Decomposition, *, frozen: int = 0) -> None:
        super().__init__()
        architecture = decomposition.architecture
        args = args_with_depth(architecture.args, decomposition.stacks)
        self.decomposition = decomposition
        self.skeleton = build_model(architecture.model, args, num_classes=architecture.num_classes)
        load_weights_from(self.skeleton, expanded(decomposition), source="the decomposition")
        self.components, self.coefficients = nn.ParameterDict(), {}
        for stack in decomposition.stacks:
            held = decomposition.components[stack.prefix]
            count = len(next(iter(held.values())))
            a_LK = decomposition.basis.coefficients(stack.depth, components=count).astype(np.float32)
            self.register_buffer(_buffer(stack.prefix, "coefficients"), torch.from_numpy(a_LK), persistent=False)
            for name, array in sorted(held.items()):  # one order, whatever held them: sums of gradients round by it
                stack_K = torch.from_numpy(np.array(array))
                self.register_buffer(_buffer(stack.prefix, name), stack_K[:frozen].clone(), persistent=False)
                self.components[_key(stack.prefix, name)] = nn.Parameter(stack_K[frozen:].clone())
            for block in range(stack.depth):
                for name in stack.shapes:
                    _drop_parameter(self.skeleton, stack.full_name(block, name))

    def forward(self, images: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (B, C). weights: `block_weights()` computed before, for several batches without a step between."""
        given = self.block_weights() if weights is None else weights
        return functional_call(self.skeleton, dict(given), (images,))

    def block_weights(self) -> dict[str, Tensor]:
        """Every block's parameters under timm's names, in full precision also under autocast."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self._block_weights()

    def _block_weights(self) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for stack in self.decomposition.stacks:
            a_LK: Tensor = getattr(self, _buffer(stack.prefix, "coefficients"))
            for name in stack.shapes:
                fixed: Tensor = getattr(self, _buffer(stack.prefix, name))
                moving = self.components[_key(stack.prefix, name)]
                if not self.training:
                    values = expand_tensor(a_LK, torch.cat([fixed, moving]))
                else:
                    values = combine(a_LK[:, len(fixed) :], moving)
                    values = values + combine(a_LK[:, : len(fixed)], fixed) if len(fixed) else values
                made |= {stack.full_name(block, name): value for block, value in enumerate(values.unbind())}
        return made

    def to_decomposition(self) -> Decomposition:
        """The decomposition with the present components and plain parts."""
        components = {
            stack.prefix: {
                name: torch.cat(
                    [getattr(self, _buffer(stack.prefix, name)), self.components[_key(stack.prefix, name)].detach()]
                ).cpu().numpy()
                for name in stack.shapes
            }
            for stack in self.decomposition.stacks
        }  # fmt: skip
        state = self.skeleton.state_dict()
        plain = {name: state[name].cpu().numpy().copy() for name in self.decomposition.plain[0]}
        return replace(self.decomposition, components=components, plain=(plain,))

    def export(self) -> nn.Module:
        """A plain timm model with the present weights, in evaluation mode."""
        now = self.to_decomposition()
        architecture = model_architecture(now, mode="tied", source=now.digest)
        model = build_model(architecture.model, architecture.args, num_classes=architecture.num_classes)
        load_weights_from(model, expanded(now), source="the tied model")
        return model.eval()

    def save(self, path: str | Path) -> str:
        """Write the present components as a file that `load_tied` and `privshard recompose` read; its digest."""
        return write_tied(Path(path), self.to_decomposition(), source=self.decomposition.digest).digest


def load_tied(path: str | Path) -> TiedModel:
    """The tied model in a file that `privshard recompose --mode tied` or `TiedModel.save` wrote."""
    with open_decomposition(Path(path), check=True) as decomposition:
        if len(decomposition.plain) > 1:
            raise InputError(
                f"Expected a tied model, got a decomposition of {len(decomposition.plain)} phases: {path}.",
                remedy="Choose its size first: privshard recompose … --mode tied",
            )
        return TiedModel(decomposition).eval()


def _drop_parameter(model: nn.Module, name: str) -> None:
    """Leave an empty place, which `functional_call` fills."""
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner).register_parameter(leaf, None)


def _key(prefix: str, name: str) -> str:
    """Parameter dictionaries take no dots."""
    return f"{prefix}/{name}".replace(".", "/")


def _buffer(prefix: str, name: str) -> str:
    return f"fixed/{_key(prefix, name)}"
