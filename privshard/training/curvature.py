"""The curvature of a shard's objective around its optimum, in a form that is small enough to keep beside a component.

n examples, C classes, D width, P numbers of a displacement, R directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from privshard.core.method import Constants, LinearMethod
from privshard.training.convex import ConvexLoss
from privshard.training.linear_map import LinearMap
from privshard.training.scaled import scales_of

CENTER = "center"
_SEED = 20240
_EXTRA = 8
_PASSES = 2
_ROUNDING = 1e-6
"""Products are exact to single precision only: directions this much weaker than the strongest are not told apart."""


def curvature(
    method: LinearMethod,
    constants: Constants | None,
    *,
    labels_n: Tensor,
    at: Mapping[str, Tensor],
    mean_D: Tensor | None,
    loss: str,
    ridge: float,
    rank: int,
    max_rows: int = 512,
) -> dict[str, Tensor]:
    """What `privshard.composition.curvature` needs of a shard: its summed objective up to second order around `at`.

    With D = s * u (`scaled`) and the head's input centred by `mean_D`, the shard's n rows give the quadratic form

        d^T (sum_i J_i^T Q_i J_i) d  +  n ridge |u(d)|^2,

    of which the first part is kept by its `rank` strongest directions in the coordinates u that were learnt in, and by
    one number t for all others: the next eigenvalue. Taken as none, a direction would be decided by whichever shard
    happens to keep it; with t, what no shard keeps is averaged. Sums, not means: a shard with more rows weighs more,
    and one without rows nothing.

    Returns, in the coordinates of the base itself: "factor/NAME" (R, *shape), F with F^T F + t |u(d)|^2 the first part;
    "ridge/NAME", a scalar (n ridge + t) / s^2; and where there is a mean, "center" (D,). R = min(rank, P) whatever the
    shard holds. Exact where R is at least the rank of the first part, up to rounding: t is 0 then.

    Not private: every number here depends on rows without noise.

    method: as it was trained, scaled and not centred. at: the tensors that were learnt in its coordinates u, centred.

    Test: tests/training/test_curvature.py, against a dense Hessian in double precision.
    """
    shapes = dict(sorted(method.shapes().items()))
    scales = scales_of(method)
    size = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
    kept, rows = min(rank, size), len(labels_n) if constants is not None else 0
    found: dict[str, Tensor] = {}
    if constants is None:
        for name, shape in shapes.items():
            found[f"factor/{name}"] = torch.zeros(kept, *shape)
            found[f"ridge/{name}"] = torch.zeros((), dtype=torch.float64)
        return found | ({} if mean_D is None else {CENTER: torch.zeros_like(mean_D, dtype=torch.float64)})
    centred = method if mean_D is None else method.centered(mean_D)
    assert isinstance(centred, LinearMethod)
    ids = [f"{row:012d}" for row in range(rows)]
    jacobian = LinearMap(centred, constants, ids=ids, max_rows=max_rows, device=labels_n.device)
    logits_nC = jacobian.base_nC + jacobian.times(
        jacobian.flat({name: x.to(jacobian.device) for name, x in at.items()})
    )
    convex = ConvexLoss(loss, labels_n)

    def product(direction_RP: Tensor) -> Tensor:
        moved_RnC = jacobian.times_each(direction_RP)
        return jacobian.transposed_each(torch.stack([convex.curvature(logits_nC, m_nC) * rows for m_nC in moved_RnC]))

    factor_RP = strongest(product, size=jacobian.size, rank=min(kept + 1, size), device=jacobian.device)
    factor_RP, tail = _split(factor_RP, rank=kept)
    for name in shapes:
        found[f"ridge/{name}"] = torch.tensor((rows * ridge + tail) / scales[name] ** 2, dtype=torch.float64)
    parts = factor_RP.split([tensor.numel() for tensor in jacobian.zero.values()], dim=1)
    factors = {
        name: part_RP.reshape(kept, *shape) / scales[name]
        for (name, shape), part_RP in zip(shapes.items(), parts, strict=True)
    }
    if mean_D is not None:
        mean_D = mean_D.to(jacobian.device, torch.float64)
        factors["head.weight"] = factors["head.weight"] + factors["head.bias"][:, :, None] * mean_D
        found[CENTER] = mean_D.cpu()
    return found | {f"factor/{name}": tensor.float().cpu() for name, tensor in factors.items()}


def strongest(
    product: Callable[[Tensor], Tensor], *, size: int, rank: int, device: torch.device | str = "cpu"
) -> Tensor:
    """F (rank, P) with F^T F about the best approximation of that rank of the positive semidefinite matrix behind
    `product`; rows are orthogonal, the longest first, and zero beyond the matrix' own rank.

    Subspace iteration (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.5) from probes of a fixed public seed, so
    the result is a function of the matrix alone. Exact where rank is at least that of the matrix, up to rounding.

    product: (R, P) -> the matrix times each row.
    """
    probes = min(size, rank + _EXTRA)
    generator = torch.Generator().manual_seed(_SEED)
    basis_RP = torch.randn(probes, size, generator=generator, dtype=torch.float64).to(device)
    images_RP = basis_RP
    for _ in range(_PASSES if probes < size else 1):
        basis_RP = _orthonormal(images_RP)
        images_RP = product(basis_RP)
        if not images_RP.any():
            return images_RP.new_zeros(rank, size)
    core_RR = basis_RP @ images_RP.mT
    values_R, vectors_RR = torch.linalg.eigh((core_RR + core_RR.mT) / 2)
    kept = values_R > float(values_R.max().clamp_min(0)) * _ROUNDING
    root_RP = (vectors_RR[:, kept] / values_R[kept].sqrt()).mT @ images_RP
    factor_RP = basis_RP.new_zeros(rank, size)
    if len(root_RP):
        _, turn_RR = torch.linalg.eigh(root_RP @ root_RP.mT)
        found_RP = (turn_RR.mT @ root_RP).flip(0)[:rank]
        factor_RP[: len(found_RP)] = found_RP
    return factor_RP


def _split(factor_RP: Tensor, *, rank: int) -> tuple[Tensor, float]:
    """The first `rank` rows without what all directions share, and that: the squared length of the next row."""
    squares_R = factor_RP.square().sum(1)
    tail = float(squares_R[rank]) if rank < len(squares_R) else 0.0
    left_R = torch.where(squares_R > 0, 1 - tail / squares_R, 0.0).clamp_min(0)[:rank]
    return left_R.sqrt()[:, None] * factor_RP[:rank], tail


def _orthonormal(rows_RP: Tensor) -> Tensor:
    """An orthonormal basis of what R rows span, much faster than a QR decomposition where they are long; twice, because
    once is only as exact as the square root of the precision. Rows that add nothing are left out."""
    for _ in range(2):
        values_R, turn_RR = torch.linalg.eigh(rows_RP @ rows_RP.mT)
        kept = values_R > values_R.max() * 1e-14
        rows_RP = (turn_RR[:, kept] / values_R[kept].sqrt()).mT @ rows_RP
    return rows_RP
