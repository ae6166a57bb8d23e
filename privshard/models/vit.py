"""A typed view of a timm vision transformer: which modules make up its stem, blocks, pooling and head.

The view is decided by what the graph is, never by a model's name. Whatever the dual rules do not cover is refused
here, with the path of the module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm.layers as timm_layers
import torch
from timm.layers import global_pool_nlc
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from privshard.core.errors import InputError

_LINEAR = (nn.Linear,)
_NORM = (nn.LayerNorm,)
_ACTIVATIONS = (
    nn.GELU,
    nn.ReLU,
    nn.SiLU,
    nn.Tanh,
    nn.ELU,
    timm_layers.GELU,
    timm_layers.GELUTanh,
    timm_layers.QuickGELU,
)


@dataclass(frozen=True, eq=False)
class BlockView:
    """One pre-norm block, x + ls1(proj(attention(norm1 x))) then x + ls2(fc2(act(fc1(norm2 x)))).

    Optional parts are None where the model has none: layer scale, query and key norms, norms inside attention or MLP.
    """

    name: str
    module: nn.Module
    norm1: nn.LayerNorm
    qkv: nn.Linear
    q_norm: nn.LayerNorm | None
    k_norm: nn.LayerNorm | None
    attn_norm: nn.LayerNorm | None
    proj: nn.Linear
    ls1: nn.Module | None
    norm2: nn.LayerNorm
    fc1: nn.Linear
    act: nn.Module
    mlp_norm: nn.LayerNorm | None
    fc2: nn.Linear
    ls2: nn.Module | None
    num_heads: int
    head_dim: int
    scale: float

    def parts(self) -> dict[str, nn.Module]:
        """Name inside the block -> module, for every module of the block that has parameters."""
        named = {
            "norm1": self.norm1,
            "attn.qkv": self.qkv,
            "attn.q_norm": self.q_norm,
            "attn.k_norm": self.k_norm,
            "attn.norm": self.attn_norm,
            "attn.proj": self.proj,
            "ls1": self.ls1,
            "norm2": self.norm2,
            "mlp.fc1": self.fc1,
            "mlp.norm": self.mlp_norm,
            "mlp.fc2": self.fc2,
            "ls2": self.ls2,
        }
        return {name: part for name, part in named.items() if part is not None}


@dataclass(frozen=True, eq=False)
class ViTView:
    """A vision transformer seen as stem, blocks, final norm, pooling, pooled norm, head. D width, N tokens.

    head_dist: the head of a distilled model, which reads the second token; the logits are then the mean of both heads'.
    """

    model: VisionTransformer
    blocks: tuple[BlockView, ...]
    norm: nn.LayerNorm | None
    fc_norm: nn.LayerNorm | None
    head: nn.Linear
    head_dist: nn.Linear | None = None

    @property
    def heads(self) -> tuple[nn.Linear, ...]:
        """The head, and that of a distilled model's second token."""
        return (self.head,) if self.head_dist is None else (self.head, self.head_dist)

    @property
    def num_read(self) -> int | None:
        """How many leading tokens the heads read; None where they read a mean over tokens."""
        if self.model.global_pool != "token" or self.model.cls_token is None:
            return None
        return 1 if self.head_dist is None else 2

    @property
    def pools_class_token(self) -> bool:
        """Whether the head reads the class token alone."""
        return self.num_read == 1

    def to(self, device: str) -> ViTView:
        """This view, with the model moved to `device` in place."""
        self.model.to(device)
        return self

    def tokens(self, images: Tensor, *, first_block: int) -> Tensor:
        """The tokens (B, N, D) that enter block `first_block`, from images (B, 3, H, W)."""
        model = self.model
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        for block in model.blocks[:first_block]:  # pyright: ignore[reportIndexIssue]
            x = block(x)
        return x

    def pool(self, x_BND: Tensor) -> Tensor:
        """Pooled tokens (B, D); linear in its input, so tangents pool the same way."""
        return global_pool_nlc(
            x_BND,
            pool_type=self.model.global_pool,
            num_prefix_tokens=self.model.num_prefix_tokens,
            reduce_include_prefix=self.model.pool_include_prefix,
        )

    def unpool(self, b_BD: Tensor, *, num_tokens: int) -> Tensor:
        """The transpose of `pool`: the cotangent of the pooled tokens to that of `num_tokens` tokens (B, N, D)."""
        first = (
            0 if self.model.global_pool == "token" or self.model.pool_include_prefix else self.model.num_prefix_tokens
        )
        count = 1 if self.model.global_pool == "token" else num_tokens - first
        before, after = (b_BD.new_zeros(len(b_BD), rows, b_BD.shape[1]) for rows in (first, num_tokens - first - count))
        return torch.cat([before, (b_BD / count).unsqueeze(1).expand(-1, count, -1), after], dim=1)

    def parts(self, first_block: int) -> dict[str, nn.Module]:
        """Full name -> module, for everything with parameters from block `first_block` to the head."""
        named: dict[str, nn.Module] = {}
        for block in self.blocks[first_block:]:
            named |= {f"{block.name}.{name}": part for name, part in block.parts().items()}
        tail = {"norm": self.norm, "fc_norm": self.fc_norm, "head": self.head, "head_dist": self.head_dist}
        return named | {name: part for name, part in tail.items() if part is not None}


def view_vit(model: nn.Module) -> ViTView:
    """See `model` as a `ViTView`, or raise InputError naming the first part that the rules do not cover."""
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        raise InputError(
            f"model: expected a timm VisionTransformer, got {type(model).__module__}.{type(model).__qualname__}.",
            remedy="Use a pre-norm vision transformer of timm, such as vit_small_patch16_224.",
        )
    if model.attn_pool is not None or model.global_pool not in ("token", "avg"):
        raise InputError(
            f"model.global_pool: expected class token or average pooling, got {model.global_pool!r}.",
            remedy="Create the model with global_pool='token' or 'avg'.",
        )
    assert isinstance(model, VisionTransformer)
    distilled = isinstance(model, VisionTransformerDistilled)
    blocks = tuple(_view_block(f"blocks.{index}", block) for index, block in enumerate(model.blocks))  # pyright: ignore
    return ViTView(
        model=model,
        blocks=blocks,
        norm=_optional("norm", model.norm, _NORM),
        fc_norm=None if distilled else _optional("fc_norm", model.fc_norm, _NORM),
        head=_required("head", model.head, _LINEAR),
        head_dist=_required("head_dist", model.head_dist, _LINEAR) if distilled else None,
    )


def _view_block(name: str, block: nn.Module) -> BlockView:
    if type(block) is not Block:
        raise _unsupported(name, block, "a pre-norm timm Block")
    attn, mlp = block.attn, block.mlp
    if type(attn) is not timm_layers.Attention or getattr(attn, "gate", None) is not None:
        raise _unsupported(f"{name}.attn", attn, "timm's plain softmax Attention without a gate")
    if type(mlp) is not timm_layers.Mlp:
        raise _unsupported(f"{name}.mlp", mlp, "timm's Mlp with an elementwise activation")
    if not isinstance(mlp.act, _ACTIVATIONS):
        raise _unsupported(f"{name}.mlp.act", mlp.act, "an elementwise activation")
    return BlockView(
        name=name,
        module=block,
        norm1=_required(f"{name}.norm1", block.norm1, _NORM),
        qkv=_required(f"{name}.attn.qkv", attn.qkv, _LINEAR),
        q_norm=_optional(f"{name}.attn.q_norm", attn.q_norm, _NORM),
        k_norm=_optional(f"{name}.attn.k_norm", attn.k_norm, _NORM),
        attn_norm=_optional(f"{name}.attn.norm", attn.norm, _NORM),
        proj=_required(f"{name}.attn.proj", attn.proj, _LINEAR),
        ls1=_optional(f"{name}.ls1", block.ls1, (timm_layers.LayerScale,)),
        norm2=_required(f"{name}.norm2", block.norm2, _NORM),
        fc1=_required(f"{name}.mlp.fc1", mlp.fc1, _LINEAR),
        act=mlp.act,
        mlp_norm=_optional(f"{name}.mlp.norm", mlp.norm, _NORM),
        fc2=_required(f"{name}.mlp.fc2", mlp.fc2, _LINEAR),
        ls2=_optional(f"{name}.ls2", block.ls2, (timm_layers.LayerScale,)),
        num_heads=attn.num_heads,
        head_dim=attn.head_dim,
        scale=attn.scale,
    )


def _required(path: str, module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Any:
    if not isinstance(module, kinds):
        raise _unsupported(path, module, " or ".join(kind.__name__ for kind in kinds))
    if isinstance(module, nn.LayerNorm) and (module.weight is None or module.bias is None):
        raise _unsupported(path, module, "LayerNorm with weight and bias", got="one without")
    return module


def _optional(path: str, module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Any:
    return None if isinstance(module, nn.Identity) else _required(path, module, kinds)


def _unsupported(path: str, module: nn.Module, expected: str, *, got: str = "") -> InputError:
    return InputError(
        f"{path}: expected {expected}, got {got or type(module).__name__}.",
        remedy="This layer has no tangent rule yet; choose a model without it.",
    )


def freeze(model: nn.Module) -> nn.Module:
    """`model` in evaluation mode, with every gradient off."""
    return model.eval().requires_grad_(False)


def seeded_head(
    num_classes: int, width: int, *, seed: int, std: float, number: int = 0, orthogonal: bool = False
) -> tuple[Tensor, Tensor]:
    """The public starting head, a function of `seed`: weight (C, D) normal with standard deviation `std`, bias zero.

    number: of the head, where there are several; each has the draws that follow the one before. orthogonal: the nearest
    matrix (by its polar factor) with rows that are orthogonal and of length std sqrt(D) each, so that no two classes
    share a direction; with more classes than width it is the columns that are orthogonal, and entries keep the root
    mean square `std`.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        torch.randn(num_classes, width, generator=generator)
    weight_CD = torch.randn(num_classes, width, generator=generator)
    if orthogonal:
        left, _, right = torch.linalg.svd(weight_CD.double(), full_matrices=False)
        weight_CD = (left @ right * max(num_classes, width) ** 0.5).float()
    return weight_CD * std, torch.zeros(num_classes)
