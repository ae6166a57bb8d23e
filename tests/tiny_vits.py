"""Tiny vision transformers of the families that timm has, with no weight left at a value that could hide a term."""

from __future__ import annotations

import zlib

import timm
import torch
from torch import nn

NUM_CLASSES = 5

# name -> timm's model and its arguments; every family has three blocks
FAMILIES: dict[str, tuple[str, dict]] = {
    "vit": ("vit_tiny_patch16_224", {}),
    "relu": ("vit_tiny_patch16_224", {"act_layer": "relu"}),
    "no_qkv_bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "no_proj_bias": ("vit_tiny_patch16_224", {"proj_bias": False}),
    "deit3": ("deit3_small_patch16_224", {}),  # layer scale; the class token has no position
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 28}),  # layer scale
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),  # layer scale and four more prefix tokens
    "clip": ("vit_base_patch16_clip_quickgelu_224", {"num_heads": 4}),  # a norm before the blocks, another activation
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "scale_norms": ("vit_tiny_patch16_224", {"scale_attn_norm": True, "scale_mlp_norm": True}),
    "avg_pool": ("vit_tiny_patch16_224", {"global_pool": "avg"}),  # the norm follows the pooling
    "avg_pool_early_norm": ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "avg_pool_prefix": ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
    "no_class_token": (
        "vit_tiny_patch16_224",
        {"global_pool": "avg", "class_token": False, "init_values": 0.1, "fc_norm": True, "final_norm": True},
    ),
}
TWO_HEADS = {"distilled": ("deit_tiny_distilled_patch16_224", {})}  # each reads a token of its own
CLASS_ROW = ("vit", "relu", "no_qkv_bias", "no_proj_bias", "deit3", "dinov2", "registers", "clip")


def tiny_vit(family: str = "vit", *, dtype: torch.dtype = torch.float64, **overrides) -> nn.Module:
    """The model of a family: width 24, three blocks, 4 patches, every parameter at random."""
    name, args = (FAMILIES | TWO_HEADS)[family]
    shape = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_classes": NUM_CLASSES}
    model = timm.create_model(name, **{**shape, **args, **overrides})
    generator = torch.Generator().manual_seed(zlib.crc32(family.encode()))
    for parameter_name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            gain = parameter_name.endswith(("weight", "gamma"))
            parameter.data.copy_(float(gain) + 0.3 * noise)
        else:
            parameter.data.copy_(noise / max(parameter[0].numel(), 1) ** 0.5)
    return model.to(dtype)


def images(num: int, model: nn.Module, *, seed: int = 0) -> torch.Tensor:
    """Random images (B, 3, H, W) of the size and type that `model` takes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = model.patch_embed.img_size
    return torch.randn(num, 3, height, width, generator=generator).to(next(model.parameters()).dtype)


def random_tensors(shapes, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Normal tensors of the given shapes, as a displacement."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
