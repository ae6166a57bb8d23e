"""A typed view of what makes tokens of images: patch embedding, prefix tokens, positions, norms.

All of it but the norms is affine: a token is a linear function of its patch, plus parameters that are added to some
rows. B batch, T patches, P numbers of a patch, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from privshard.core.errors import InputError

_PREFIX = ("cls_token", "dist_token", "reg_token")


@dataclass(frozen=True, eq=False)
class Added:
    """A parameter (1, M, D) that is added to M rows of the tokens, from row `first` on."""

    name: str
    value: nn.Parameter
    first: int


@dataclass(frozen=True, eq=False)
class StemView:
    """tokens = norm_pre(rows of zeros for prefix tokens, then patch_norm(W patch + b), plus everything `added`).

    Both norms are None where the model has none.
    """

    proj: nn.Conv2d
    patch_norm: nn.LayerNorm | None
    added: tuple[Added, ...]
    num_prefix: int
    norm_pre: nn.LayerNorm | None

    def patches(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) cut into patches (B, T, P): the rows that the embedding's weight meets."""
        height, width = self.proj.kernel_size
        cut = images.unfold(2, height, height).unfold(3, width, width)
        return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def parts(self) -> dict[str, nn.Module]:
        """Full name -> module, for every module with parameters."""
        named = {"patch_embed.proj": self.proj, "patch_embed.norm": self.patch_norm, "norm_pre": self.norm_pre}
        return {name: part for name, part in named.items() if part is not None}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full parameter name -> shape, for what is added."""
        return {part.name: tuple(part.value.shape) for part in self.added}


def view_stem(model: VisionTransformer) -> StemView:
    """See the stem of `model` as a `StemView`, or raise InputError naming the first part that it does not cover."""
    embed, proj = model.patch_embed, model.patch_embed.proj
    if type(embed) is not PatchEmbed:
        raise _unsupported("patch_embed", "timm's PatchEmbed", type(embed).__name__)
    plain = type(proj) is nn.Conv2d and proj.kernel_size == proj.stride and proj.padding == (0, 0) and proj.groups == 1
    if not plain:
        raise _unsupported("patch_embed.proj", "a Conv2d over patches that don't overlap", str(proj))
    if model.dynamic_img_size or embed.dynamic_img_pad:
        raise _unsupported("patch_embed", "images of one size", "positions that follow the size of the image")
    prefix, rows = [], 0
    for name in _PREFIX:
        value = getattr(model, name, None)
        if value is not None:
            prefix.append(Added(name, value, rows))
            rows += value.shape[1]
    if model.pos_embed is not None:
        prefix.append(Added("pos_embed", model.pos_embed, rows if model.no_embed_class else 0))
    return StemView(
        proj=proj,
        patch_norm=_norm("patch_embed.norm", embed.norm),
        added=tuple(prefix),
        num_prefix=rows,
        norm_pre=_norm("norm_pre", model.norm_pre),
    )


def _norm(path: str, module: nn.Module) -> nn.LayerNorm | None:
    if isinstance(module, nn.Identity):
        return None
    if not isinstance(module, nn.LayerNorm) or module.weight is None or module.bias is None:
        raise _unsupported(path, "LayerNorm with weight and bias", type(module).__name__)
    return module


def _unsupported(path: str, expected: str, got: str) -> InputError:
    return InputError(
        f"{path}: expected {expected} to linearize the embeddings too, got {got}.",
        remedy="Linearize a number of blocks instead of all: then the embeddings stay as they are.",
    )
