"""`linearize`: a timm vision transformer as its first-order expansion in the weights of its last blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from privshard.core.digest import tensors_digest
from privshard.core.displacement import Displacement
from privshard.core.errors import InputError
from privshard.models.stem import StemView, view_stem
from privshard.models.vit import ViTView, freeze, view_vit
from privshard.tangent.dual import Dual, StoredDelta


def linearize(model: nn.Module, *, blocks: int | str = 1, base: str | None = None) -> LinearizedViT:
    """Linearize the last `blocks` blocks, the final norm and the head of a timm vision transformer; "all": the whole
    network, its patch, class and position embeddings too.

    f_lin(x; D) = f(x; w0) + J(x) D, with J the Jacobian of the logits at the frozen weights w0 and D the trainable
    displacement. Linear in D, so averaging displacements is averaging logits. Exact: values and gradients agree with
    `torch.func.jvp` (tests/tangent/test_linearize.py).

    model: a timm VisionTransformer, distilled or not, with a class token or average pooling; it is frozen in place and
    put in evaluation mode. blocks: 1 to as many as there are, or "all". base: the digest to stamp on displacements
    (default: digest of the weights). Raises InputError for models without tangent rules, naming the layer.

    >>> import timm
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    >>> lin = linearize(vit, blocks=1)
    >>> lin(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 3])
    """
    view = view_vit(model)
    first, stem = first_linearized(view, blocks), linearized_stem(view, blocks)
    return LinearizedViT(view, first_block=first, stem=stem, base=base)


def first_linearized(view: ViTView, blocks: int | str) -> int:
    """Index of the first linearized block, or InputError."""
    depth = len(view.blocks)
    count = depth if blocks == "all" else blocks
    if not isinstance(count, int) or not 1 <= count <= depth:
        raise InputError(f"blocks: expected 1 to {depth}, or 'all', got {blocks!r}.")
    return depth - count


def linearized_stem(view: ViTView, blocks: int | str) -> StemView | None:
    """The stem where it is linearized too; InputError where it has no tangent rules."""
    return view_stem(view.model) if blocks == "all" else None


class LinearizedViT(nn.Module):
    """A linearized vision transformer; call it with images (B, 3, H, W) for logits (B, C).

    Its own trainable displacement is kept in plain `nn.Linear` and `nn.LayerNorm` modules that act on constant
    inputs, so any optimizer, and Opacus' PrivacyEngine, trains it as it is. The base never needs a gradient.
    """

    def __init__(
        self, view: ViTView, *, first_block: int, stem: StemView | None = None, base: str | None = None
    ) -> None:
        super().__init__()
        freeze(view.model)
        self.view = view
        self.stem = stem
        self.model = view.model
        self.first_block = first_block
        self._base = base
        parts: dict[str, nn.Module | nn.Parameter] = {**view.parts(first_block)}
        if stem is not None:
            parts = {**{part.name: part.value for part in stem.added}, **stem.parts(), **parts}
        self._keys = {name: name.replace(".", "/") for name in parts}
        self.delta = nn.ModuleDict({self._keys[name]: _delta_module(part) for name, part in parts.items()})

    @cached_property
    def base(self) -> str:
        """Digest of the base that displacements of this model carry."""
        state = {name: tensor.cpu().float().numpy() for name, tensor in self.model.state_dict().items()}
        return self._base or tensors_digest(state, "model")

    def train(self, mode: bool = True) -> LinearizedViT:
        """Set the mode of the displacement's modules; the base stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, images: Tensor, displacement: Displacement | Sequence[Displacement] | None = None) -> Tensor:
        """Logits of images (B, 3, H, W) under the own displacement, a given one, or each of several.

        Several (S of them) give (S, B, C) and share one pass of the base.
        """
        return self.from_tokens(self.tokens(images), displacement)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """The constants (B, N, D) that enter the first linearized block, or where the stem is linearized the patches
        (B, T, P) that enter it: cache them, they never change."""
        if self.stem is not None:
            return self.stem.patches(images)
        return self.view.tokens(images, first_block=self.first_block)

    def from_tokens(
        self, tokens_BND: Tensor, displacement: Displacement | Sequence[Displacement] | None = None
    ) -> Tensor:
        """As `forward`, from cached `tokens`."""
        if displacement is None:
            deltas = [_ModuleDelta(self)]
        else:
            given = [displacement] if isinstance(displacement, Displacement) else list(displacement)
            deltas = [StoredDelta(self._checked(item, tokens_BND).tensors) for item in given]
        out, _, _ = Dual(deltas).evaluate(self.view, tokens_BND, first_block=self.first_block, stem=self.stem)
        logits = torch.stack([out.x + dx for dx in out.dxs]) if deltas else out.x.unsqueeze(0)[:0]  # pyright: ignore
        return logits if isinstance(displacement, Sequence) else logits[0]

    def displacement(self) -> Displacement:
        """A copy of the own displacement, named by the base's parameters."""
        shapes = self.shapes()
        own = {name: parameter.detach().clone() for name, parameter in self._own().items()}
        tensors = {name: tensor.reshape(shapes[name]) for name, tensor in own.items()}
        return Displacement(tensors, self.base, "tangent")

    def _own(self) -> dict[str, nn.Parameter]:
        """Parameter name of the base -> the own displacement of it, as the modules hold it."""
        return {
            name if isinstance(self.delta[key], _Added) else f"{name}.{suffix}": parameter
            for name, key in self._keys.items()
            for suffix, parameter in self.delta[key].named_parameters()
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape, for everything that the displacement moves."""
        return moved_shapes(self.view, first_block=self.first_block, stem=self.stem)

    def _checked(self, item: Displacement, tokens: Tensor) -> Displacement:
        if item.base != self.base or item.space != "tangent":
            raise InputError(
                f"displacement: expected space 'tangent' of base {self.base[:12]}, got space {item.space!r} of base "
                f"{item.base[:12]}.",
                remedy="Linearize the model that the displacement was learnt on.",
            )
        wanted, given = self.shapes(), {name: tuple(tensor.shape) for name, tensor in item.tensors.items()}
        odd = [name for name in sorted(wanted.keys() | given.keys()) if wanted.get(name) != given.get(name)]
        if odd:
            shown = "; ".join(f"{n}: expected {wanted.get(n, 'none')}, got {given.get(n, 'none')}" for n in odd[:3])
            raise InputError(
                f"displacement: it doesn't fit the last {len(self.view.blocks) - self.first_block} block(s), "
                f"{len(odd)} tensor(s) differ: {shown}.",
                remedy="Linearize as many blocks as the displacement was learnt with.",
            )
        return item.to(tokens.device)


def parameter_shapes(parts: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Full parameter name -> shape, over named modules."""
    return {
        f"{name}.{suffix}": tuple(tensor.shape)
        for name, part in parts.items()
        for suffix, tensor in part.named_parameters()
    }


def moved_shapes(view: ViTView, *, first_block: int, stem: StemView | None) -> dict[str, tuple[int, ...]]:
    """Full parameter name -> shape, for everything that is linearized."""
    shapes = parameter_shapes(view.parts(first_block))
    return shapes if stem is None else {**stem.shapes(), **parameter_shapes(stem.parts()), **shapes}


class _Scale(nn.Module):
    """dgamma * x: the displacement of a layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Added(nn.Module):
    """dp, for each example: the displacement of a parameter (1, M, D) that is added to rows."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    def forward(self, like_BMD: Tensor) -> Tensor:
        return self.value.expand_as(like_BMD)


class _ModuleDelta:
    """The own displacement of a LinearizedViT, acting through its modules."""

    def __init__(self, owner: LinearizedViT) -> None:
        self._modules = {name: owner.delta[key] for name, key in owner._keys.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return self._modules[name](x)

    def norm(self, name: str, x: Tensor, n: Tensor) -> Tensor:
        return self._modules[name](x)

    def scale(self, name: str, x: Tensor) -> Tensor:
        return self._modules[name](x)

    def added(self, name: str, like_BMD: Tensor) -> Tensor:
        return self._modules[name](like_BMD)


def _delta_module(part: nn.Module | nn.Parameter) -> nn.Module:
    """A module of the same size as `part`, with zero parameters, that gives dW x + db of its input."""
    if isinstance(part, nn.Parameter):
        return _Added(part.shape).to(part)
    if isinstance(part, nn.Conv2d):  # it meets patches, as a matrix
        out, inside = part.weight.flatten(1).shape
        module: nn.Module = nn.Linear(inside, out, bias=part.bias is not None)
    elif isinstance(part, nn.Linear):
        module = nn.Linear(part.in_features, part.out_features, bias=part.bias is not None)
    elif isinstance(part, nn.LayerNorm):
        module = nn.LayerNorm(list(part.normalized_shape), eps=part.eps)
    else:
        module = _Scale(part.get_parameter("gamma").numel())
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    like = next(part.parameters())
    return module.to(device=like.device, dtype=like.dtype)
