"""The PaCa form of GIFT: a small transformer reads a weight matrix row by row and writes its residual.

The O rows of W are tokens. X = (W + positions) reduced to width R; then blocks of X += Proj(PaCa(norm(X))),
X += FFN(norm(X)); the residual is X recover. PaCa attends to M clusters instead of O tokens: assignments
C = sigmoid(Linear(X)) (O x M), Z = C^T X, softmax(Q(X) K(Z)^T / sqrt(R)) V(Z). The residual is again a product of a
left factor of its own for every layer, X (O x R), and a right factor that all layers share, recover (R x I).

O output and I input width of a layer, R width inside, M clusters, F width of the feed-forward part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Shapes = dict[str, tuple[int, ...]]


def shapes(*, in_width: int, rank: int, clusters: int, depth: int, ffn_ratio: int) -> Shapes:
    """Name -> shape of every parameter."""
    found: Shapes = {"reduce.weight": (rank, in_width), "reduce.bias": (rank,)}
    for block in range(depth):
        linear = {
            "cluster": (clusters, rank),
            "query": (rank, rank),
            "key": (rank, rank),
            "value": (rank, rank),
            "proj": (rank, rank),
            "fc1": (ffn_ratio * rank, rank),
            "fc2": (rank, ffn_ratio * rank),
        }
        for name, shape in linear.items():
            found |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    return found | {"recover": (rank, in_width)}


def initial(shapes: Mapping[str, tuple[int, ...]], *, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights normal with variance one over their input width; biases, and what recovers the width, zero."""
    return {
        name: torch.randn(shape, generator=generator) / shape[1] ** 0.5
        if name.endswith("weight")
        else torch.zeros(shape)
        for name, shape in shapes.items()
    }


def left(parameters: Mapping[str, Tensor], weights: Sequence[Tensor], *, depth: int) -> list[Tensor]:
    """The left factor X (O, R) of each layer's residual X recover."""
    return [_hidden(parameters, weight_OI, depth)[0] for weight_OI in weights]


def clusters(parameters: Mapping[str, Tensor], weight_OI: Tensor, *, depth: int) -> Tensor:
    """The cluster assignments C (O, M) of the last block, in (0, 1)."""
    return _hidden(parameters, weight_OI, depth)[1]


def _hidden(parameters: Mapping[str, Tensor], weight_OI: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    x_OR = linear("reduce", weight_OI + positions(weight_OI))
    assigned_OM = x_OR
    for block in range(depth):
        y_OR = F.normalize(x_OR, dim=-1)
        assigned_OM = torch.sigmoid(linear(f"{block}.cluster", y_OR))
        z_MR = assigned_OM.mT @ y_OR
        scores_OM = linear(f"{block}.query", y_OR) @ linear(f"{block}.key", z_MR).mT / y_OR.shape[-1] ** 0.5
        mixed_OR = torch.softmax(scores_OM, dim=-1) @ linear(f"{block}.value", z_MR)
        x_OR = x_OR + linear(f"{block}.proj", mixed_OR)
        hidden_OF = F.gelu(linear(f"{block}.fc1", F.normalize(x_OR, dim=-1)))
        x_OR = x_OR + linear(f"{block}.fc2", hidden_OF)
    return x_OR, assigned_OM


def positions(weight_OI: Tensor) -> Tensor:
    """Sines and cosines of the row number (O, I), scaled to the root mean square of W, so that neither drowns the
    other; a constant of the base."""
    num_rows, width = weight_OI.shape
    row_O = torch.arange(num_rows, device=weight_OI.device, dtype=torch.float64)
    frequency_J = 10_000.0 ** (-torch.arange(0, width, 2, device=weight_OI.device, dtype=torch.float64) / width)
    angle_OJ = row_O[:, None] * frequency_J
    waves_OI = torch.stack((angle_OJ.sin(), angle_OJ.cos()), dim=-1).flatten(1)[:, :width]
    return waves_OI.to(weight_OI) * (2 * weight_OI.square().mean()).sqrt()
