"""Slow, obvious references that the tests compare the library with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn


def exact_weighted_sum(arrays: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """sum_i weight_i array_i, number by number in rational arithmetic."""
    shape = next(iter(arrays.values())).shape
    out = np.empty(shape)
    for place in np.ndindex(*shape):
        out[place] = float(sum(Fraction(float(arrays[name][place])) * Fraction(weights[name]) for name in weights))
    return out


def shapley_by_orders(value: Callable[[frozenset[int]], float], count: int) -> list[float]:
    """Shapley values by their definition: the mean, over all orders, of what each player adds on joining."""
    gains = [0.0] * count
    for order in permutations(range(count)):
        present: frozenset[int] = frozenset()
        for player in order:
            gains[player] += value(present | {player}) - value(present)
            present |= {player}
    return [gain / math.factorial(count) for gain in gains]


def calibration_error_by_loop(logits_BC: np.ndarray, labels_B: np.ndarray, num_bins: int) -> float:
    """Expected calibration error, one row at a time, bins (k/K, (k+1)/K]."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for logits_C, label in zip(logits_BC, labels_B, strict=True):
        p_C = np.exp(logits_C) / np.exp(logits_C).sum()
        place = next(k for k in range(num_bins) if p_C.max() <= (k + 1) / num_bins or k == num_bins - 1)
        bins[place].append((float(p_C.max()), bool(p_C.argmax() == label)))
    return sum(abs(sum(hit - p for p, hit in rows)) for rows in bins) / len(labels_B)


def linearized_by_jvp(model: nn.Module, images_B: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (B, C) of the plain model, and their derivative along `tensors`, by torch's forward mode."""
    model = _unfused(model)
    w0 = {name: parameter.detach() for name, parameter in model.named_parameters() if name in tensors}
    direction = {name: tensors[name] for name in w0}
    return torch.func.jvp(lambda w: torch.func.functional_call(model, w, (images_B,)), (w0,), (direction,))


def gradients_by_loop(
    model: nn.Module, images_B: Tensor, cotangent_BC: Tensor, names: Iterable[str]
) -> list[dict[str, Tensor]]:
    """The gradient of <cotangent, logits> at the weights of the plain model, one example at a time."""
    model = _unfused(model)
    parameters = {name: dict(model.named_parameters())[name].requires_grad_() for name in names}
    out = []
    for image, cotangent_C in zip(images_B, cotangent_BC, strict=True):
        value = (model(image[None])[0] * cotangent_C).sum()
        gradients = torch.autograd.grad(value, list(parameters.values()))
        out.append(dict(zip(parameters, gradients, strict=True)))
    return out


def unit_gradients_by_loop(
    gradients: Sequence[Mapping[str, Tensor]], units: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """unit -> the sum of the gradients of its examples."""
    out: dict[str, dict[str, Tensor]] = {}
    for gradient, unit in zip(gradients, units, strict=True):
        so_far = out.get(unit)
        out[unit] = dict(gradient) if so_far is None else {name: so_far[name] + gradient[name] for name in gradient}
    return out


def squared_norm(gradient: Mapping[str, Tensor]) -> float:
    """Squared Euclidean norm over all parameters together."""
    return sum(float(tensor.double().square().sum()) for tensor in gradient.values())


def clipped_sum_by_loop(gradients: Iterable[Mapping[str, Tensor]], max_grad_norm: float) -> dict[str, Tensor]:
    """sum_u g_u min(1, C / |g_u|), one unit at a time."""
    total: dict[str, Tensor] = {}
    for gradient in gradients:
        norm = squared_norm(gradient) ** 0.5
        factor = 1.0 if norm <= max_grad_norm else max_grad_norm / norm
        total = {name: total.get(name, 0.0) + factor * tensor for name, tensor in gradient.items()}
    return total


def _unfused(model: nn.Module) -> nn.Module:
    """A copy of a timm vision transformer whose attention is written out: fused kernels have no forward mode."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def chebyshev(n: int, u: float) -> float:
    """T_n(u) = cos(n arccos u), the closed form."""
    return math.cos(n * math.acos(u))


def legendre(n: int, u: float) -> float:
    """P_n(u) = 2^-n sum_k C(n, k)^2 (u - 1)^(n - k) (u + 1)^k, exactly for the double u."""
    x = Fraction(u)
    return float(sum(math.comb(n, k) ** 2 * (x - 1) ** (n - k) * (x + 1) ** k for k in range(n + 1)) / 2**n)


def blocks_by_loop(coefficients_LK: np.ndarray, components: np.ndarray) -> np.ndarray:
    """W_l = sum_n a(l, n) A_n in double precision, one term at a time."""
    out = np.zeros((len(coefficients_LK), *components.shape[1:]))
    for block, row in enumerate(coefficients_LK):
        for weight, component in zip(row, components, strict=True):
            out[block] += weight * component.astype(np.float64)
    return out
