"""A small shard: rows that are a function of their ids, and methods on tiny vision transformers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from tiny_vits import tiny_vit
from torch import Tensor, nn

from privshard.core.method import Constants, Method
from privshard.models.stem import view_stem
from privshard.models.vit import freeze, view_vit
from privshard.tangent.block_engine import BlockEngine
from privshard.tangent.class_row import ClassRowEngine
from privshard.training.encoding import encode
from privshard.training.head import HeadMethod


@dataclass(frozen=True)
class Shard:
    """Rows in canonical order: their subjects, images, labels, and what the base computes for them."""

    subjects: tuple[str, ...]
    images_B: Tensor
    labels_B: Tensor
    constants: Constants | None


@pytest.fixture
def make_method() -> Callable[..., tuple[Method, nn.Module]]:
    """(kind, family, dtype) -> (method, its frozen model)."""

    def make(kind: str, family: str = "vit", *, dtype: torch.dtype = torch.float32) -> tuple[Method, nn.Module]:
        model = freeze(tiny_vit(family, dtype=dtype))
        view = view_vit(model)
        methods = {"class row": lambda: ClassRowEngine(view), "head": lambda: HeadMethod(view)}
        methods["whole"] = lambda: BlockEngine(view, first_block=0, stem=view_stem(model))
        return methods.get(kind, lambda: BlockEngine(view, first_block=1))(), model

    return make


@pytest.fixture
def make_shard() -> Callable[..., Shard]:
    """(method, "<subject>-<number>" ids in any order) -> the shard that holds them, in the order of ids."""

    def make(method: Method, ids: Sequence[str], *, batch_size: int = 4) -> Shard:
        ids = sorted(ids)
        images = [torch.randn(3, 32, 32, generator=_generator(name)) for name in ids]
        batches = [torch.stack(images[at : at + batch_size]) for at in range(0, len(ids), batch_size)]
        constants = encode(method, batches, num_rows=len(ids), batch_size=batch_size, device="cpu")
        labels_B = torch.tensor([zlib.crc32(name.encode()) % 5 for name in ids], dtype=torch.long)
        subjects = tuple(name.split("-")[0] for name in ids)
        return Shard(subjects, torch.stack(images) if images else torch.zeros(0, 3, 32, 32), labels_B, constants)

    return make


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))
