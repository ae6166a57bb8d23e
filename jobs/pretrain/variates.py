"""Random tensors drawn from an explicit generator, on its device."""

import math

import torch
from torch import Generator, Tensor

Scene = dict[str, Tensor]  # drawn parameters by name


def uniform(generator: Generator, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform values in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def log_uniform(generator: Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Values in [low, high) whose logarithm is uniform."""
    return uniform(generator, shape, math.log(low), math.log(high)).exp()


def normal(generator: Generator, shape: tuple[int, ...], deviation: float) -> Tensor:
    """Gaussian values around zero."""
    return deviation * torch.randn(shape, generator=generator, device=generator.device)


def chance(generator: Generator, shape: tuple[int, ...], probability: float) -> Tensor:
    """True with the given probability."""
    return torch.rand(shape, generator=generator, device=generator.device) < probability
