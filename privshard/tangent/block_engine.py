"""The k-block engine: any number of linearized blocks, either pooling, from cached tokens.

The model is linear in its displacement, so the gradient of an example is J(x)^T r: the ordinary gradient of the frozen
network at w0 with cotangent r on the logits. One pull through the primal, seen layer by layer, gives every factor, and
the primal that carried the tangent forward serves it too.

B batch, N tokens, D width, C classes, T patches, P numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from privshard.core.displacement import Space
from privshard.core.method import Constants, Pullback
from privshard.models.stem import StemView
from privshard.models.vit import ViTView
from privshard.tangent.center import feature_radius, uncenter_head
from privshard.tangent.dual import Dual, Pull, StoredDelta, Stream
from privshard.tangent.linearize import moved_shapes
from privshard.tangent.padding import token_multiple
from privshard.tangent.places import Direct, Outer, Places


class BlockEngine:
    """`privshard.core.method.Method` of the linearized last blocks; constants are the tokens that enter them.

    With a `stem` the embeddings are linearized too, and constants are the patches of the images. why: what the
    class-row form doesn't fit, for people. multiple: the blocks carry tokens padded to a multiple of it, which changes
    nothing but rounding (tests/tangent/test_padding.py); None takes what suits device and type. Constants are never
    padded.
    """

    name = "tangent"
    space: Space = "tangent"
    batch_scale = 1
    compiled_after = 100_000
    indexed: frozenset[str] = frozenset()

    def __init__(
        self,
        view: ViTView,
        *,
        first_block: int,
        stem: StemView | None = None,
        center_D: Tensor | float = 0.0,
        why: str = "asked for",
        multiple: int | None = None,
    ) -> None:
        self._view = view
        self._first = first_block
        self._stem = stem
        self._center_D = center_D
        self._why = why
        self._multiple = multiple
        self._constant = "tokens" if stem is None else "patches"
        self.wide = frozenset({self._constant})
        self.radius = feature_radius(view)

    @property
    def engine(self) -> str:
        """Which engine this is and why it was taken, for people."""
        return f"k-block ({self._why})"

    @torch.no_grad()
    def features(self, constants: Constants) -> Tensor:
        """The head's input (B, D)."""
        x = constants[self._constant]
        narrow = x.dtype == torch.bfloat16
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=narrow):
            return self._run([], x)[1]

    def centered(self, mean_D: Tensor) -> BlockEngine:
        """This method, with the head's input centred by `mean_D`."""
        center_D = mean_D.to(self._view.head.weight)
        return BlockEngine(
            self._view,
            first_block=self._first,
            stem=self._stem,
            center_D=center_D,
            why=self._why,
            multiple=self._multiple,
        )

    def uncentered(self, displacement: Mapping[str, Tensor], mean_D: Tensor) -> dict[str, Tensor]:
        """Back to the coordinates of the base."""
        return uncenter_head(displacement, mean_D)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape."""
        return moved_shapes(self._view, first_block=self._first, stem=self._stem)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Constants:
        """tokens (B, N, D) that enter the first linearized block; with a stem, patches (B, T, P)."""
        if self._stem is not None:
            return {"patches": self._stem.patches(images)}
        return {"tokens": self._view.tokens(images, first_block=self._first)}

    @torch.no_grad()
    def logits(self, constants: Constants, displacement: Mapping[str, Tensor]) -> Tensor:
        """f(x; w0) + J(x) D, (B, C)."""
        return self._moved(constants, displacement)[0]

    @torch.no_grad()
    def pull(self, constants: Constants, displacement: Mapping[str, Tensor]) -> tuple[Tensor, Pullback]:
        """Logits, and the pullback on the same primal."""
        logits_BC, pull = self._moved(constants, displacement)
        return logits_BC, partial(self._pulled, pull, constants[self._constant].dtype)

    @torch.no_grad()
    def gradients(self, constants: Constants, displacement: Mapping[str, Tensor], cotangent_BC: Tensor) -> Places:
        """J(x)^T r in factors; it doesn't depend on the displacement."""
        x = constants[self._constant]
        return self._pulled(self._run([], x)[2], x.dtype, cotangent_BC)

    def _moved(self, constants: Constants, displacement: Mapping[str, Tensor]) -> tuple[Tensor, Pull]:
        delta = StoredDelta(displacement, head_center_D=self._center_D)
        out, _, pull = self._run([delta], constants[self._constant])
        assert out.dxs[0] is not None
        return out.x + out.dxs[0], pull

    def _run(self, deltas: Sequence[StoredDelta], x: Tensor) -> tuple[Stream, Tensor, Pull]:
        multiple = token_multiple(x.device, x.dtype) if self._multiple is None else self._multiple
        dual = Dual(deltas, multiple=multiple)
        return dual.evaluate(self._view, x, first_block=self._first, stem=self._stem)

    @torch.no_grad()
    def _pulled(self, pull: Pull, dtype: torch.dtype, cotangent_BC: Tensor) -> Places:
        found: list[Outer | Direct] = []

        def collect(name: str, module: nn.Module | nn.Parameter, factor: Tensor | None, back: Tensor) -> None:
            if factor is None:
                assert isinstance(module, nn.Parameter)
                found.append(Direct(name, back.flatten(1).to(dtype), tuple(module.shape)))
                return
            factor = factor - self._center_D if name == "head" else factor
            found.extend(_places(name, module, factor.to(dtype), back.to(dtype)))

        pull(cotangent_BC, collect)
        return Places(found)


def _places(name: str, module: nn.Module | nn.Parameter, factor: Tensor, back: Tensor) -> list[Outer | Direct]:
    """The places of one layer, from what its parameters multiply and the gradient of its output."""
    bias = [] if getattr(module, "bias", None) is None else [Direct(f"{name}.bias", _total(back))]
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        tokens = (back, factor) if back.ndim == 3 else (back.unsqueeze(1), factor.unsqueeze(1))
        shape = tuple(module.weight.shape) if isinstance(module, nn.Conv2d) else None
        return [Outer(f"{name}.weight", tokens[0].unsqueeze(2), tokens[1].unsqueeze(2), shape), *bias]
    suffix = "weight" if isinstance(module, nn.LayerNorm) else "gamma"
    return [Direct(f"{name}.{suffix}", _total(back * factor)), *bias]


def _total(x: Tensor) -> Tensor:
    """(B, ..., P) -> (B, P): summed over everything between."""
    return x if x.ndim == 2 else x.sum(dim=tuple(range(1, x.ndim - 1)))
