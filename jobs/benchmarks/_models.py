"""The models that benchmarks run: timm's, with random weights, frozen; and batches of random images for them."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from privshard.models.vit import ViTView, freeze, view_vit

NUM_CLASSES = 100


def random_vit(name: str, *, device: str) -> ViTView:
    """The model of that name, seen as stem, blocks and head; its head is random too."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=NUM_CLASSES)
    nn.init.normal_(model.head.weight, std=0.02)  # pyright: ignore
    return view_vit(freeze(model)).to(device)


def random_images(view: ViTView, num: int, *, device: str) -> Tensor:
    """Images (num, 3, H, W), normal."""
    height, width = view.model.patch_embed.img_size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num, 3, height, width, generator=generator).to(device)


def weight_bytes(model: nn.Module, *, dtype: torch.dtype) -> int:
    """What reading every weight once moves."""
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def precision(device: str) -> torch.dtype:
    """The type that the frozen computation runs in: bfloat16 on GPUs, fp32 on CPUs."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32
