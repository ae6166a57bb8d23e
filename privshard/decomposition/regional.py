"""Blocks compiled once for all: blocks of equal parts share one graph, whatever model, depth or phase they are in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor, nn

from privshard.core.execution import ExecutionFlags
from privshard.training.encoding import pays

MIN_COMPILED_IMAGES = 500_000
_BLOCK = re.compile(r"(^|\.)blocks\.\d+$")


@contextmanager
def compiled_blocks(model: nn.Module) -> Iterator[None]:
    """Within, the blocks of `model` run compiled, forward and backward; embeddings and head stay eager.

    What is compiled holds for the process, not for the model: a block takes its weights as inputs, so one graph serves
    all blocks with the same shapes, whether their weights are parameters or, in a tied model, tensors computed from the
    components (one graph for each of the two). Meant for training alone, where all batches have one shape: leave the
    context to evaluate. Agrees with the eager model up to rounding, where blocks draw no random numbers. Blocks that
    differ in more than their weights (a Swin's windows, rates of drop path) are compiled apart, as many as dynamo's
    limit allows; others run eager. So does a model without blocks.

    Test: tests/decomposition/test_regional.py.
    """
    blocks = [module for name, module in model.named_modules() if _BLOCK.search(name)]
    for block in blocks:
        block.forward = partial(_run, block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def training_pays(flags: ExecutionFlags, *, device: str, num_images: float) -> bool:
    """Whether `execution.compile` asks to compile a training on this many images; "auto" on a GPU from 500,000 on.

    By estimate, not by measurement: compiling takes about half a minute, which a tiny model's training gains back in a
    few minutes. ResourceError where it is asked for by name and can't be done.
    """
    return pays(flags, device=device, amount=num_images, enough=MIN_COMPILED_IMAGES)


def _run(block: nn.Module, tokens: Tensor, *args: object, **kwargs: object) -> Tensor:
    """The first block's tokens may have strides of their own, which would be compiled for apart."""
    return _compiled()(block, tokens.contiguous(), *args, **kwargs)


def _forward(block: nn.Module, tokens: Tensor, *args: object, **kwargs: object) -> Tensor:
    return type(block).forward(block, tokens, *args, **kwargs)


@cache
def _compiled() -> Callable[..., Tensor]:
    """One function for the process, whose graphs all blocks share."""
    return torch.compile(_forward, dynamic=False)
