"""A preconditioner for ridge problems: the strongest directions of a matrix, found by products with it.

P numbers of a displacement, R directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
_SEED = 20231


@dataclass(frozen=True, eq=False)
class NystromPreconditioner:
    """The inverse of a rank-R model of A + lam I, scaled so that weak directions pass unchanged.

    Frangella, Tropp and Udell, "Randomized Nystrom preconditioning" (2021), equation 5.3:
    U ((lam + l_R) / (L + lam)) U^T + (I - U U^T). l_R is the smallest eigenvalue kept.
    """

    vectors_PR: Tensor
    values_R: Tensor
    ridge: float

    def __call__(self, residual_P: Tensor) -> Tensor:
        if not len(self.values_R):
            return residual_P
        along_R = self.vectors_PR.mT @ residual_P
        factor_R = (self.ridge + self.values_R[-1]) / (self.values_R + self.ridge) - 1
        return residual_P + self.vectors_PR @ (factor_R * along_R)


def nystrom(product: Product, *, size: int, rank: int, ridge: float, device: torch.device) -> NystromPreconditioner:
    """Sketch the positive semidefinite A behind `product` with `rank` products.

    The probes come from a fixed public seed, so the result is a function of A alone. A poor sketch costs iterations,
    never correctness.
    """
    rank = min(rank, size)
    if rank < 1:
        empty = torch.zeros(size, 0, dtype=torch.float64, device=device)
        return NystromPreconditioner(empty, empty[0], ridge)
    generator = torch.Generator().manual_seed(_SEED)
    probes_PR = torch.randn(size, rank, generator=generator, dtype=torch.float64).to(device)
    probes_PR = torch.linalg.qr(probes_PR).Q
    images_PR = torch.stack([product(probe_P) for probe_P in probes_PR.mT], dim=1)
    shift = float(images_PR.norm()) * 1e-6  # products are exact to single precision only
    if not shift > 0:
        return NystromPreconditioner(probes_PR[:, :0], images_PR.new_zeros(0), ridge)
    images_PR = images_PR + shift * probes_PR
    core_RR = probes_PR.mT @ images_PR
    values_R, vectors_RR = torch.linalg.eigh((core_RR + core_RR.mT) / 2)
    kept = values_R > shift / 2
    root_PR = images_PR @ (vectors_RR[:, kept] / values_R[kept].sqrt())
    left_PR, singular_R, _ = torch.linalg.svd(root_PR, full_matrices=False)
    return NystromPreconditioner(left_PR, (singular_R.square() - shift).clamp_min(0), ridge)


def conjugate_gradients(
    product: Product, target_P: Tensor, *, preconditioner: Product, tolerance: float, max_products: int
) -> tuple[Tensor, int]:
    """x with |product(x) - target| <= tolerance |target|, and the products that it took.

    Truncated: after `max_products`, or where rounding leaves no direction of positive curvature, the best x so far
    comes back; for a positive definite product every iterate is a descent direction of the quadratic.
    """
    x_P = torch.zeros_like(target_P)
    residual_P = target_P.clone()
    goal = tolerance * float(target_P.norm())
    conditioned_P = preconditioner(residual_P)
    direction_P = conditioned_P
    slope = float(residual_P @ conditioned_P)
    done = 0
    while done < max_products and float(residual_P.norm()) > goal:
        image_P = product(direction_P)
        done += 1
        curvature = float(direction_P @ image_P)
        if not curvature > 0:
            break
        step = slope / curvature
        x_P = x_P + step * direction_P
        residual_P = residual_P - step * image_P
        conditioned_P = preconditioner(residual_P)
        previous, slope = slope, float(residual_P @ conditioned_P)
        direction_P = conditioned_P + (slope / previous) * direction_P
    return x_P, done
