"""The noisy mean of bounded vectors: one Gaussian release of their sum and their number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from privshard.core.privacy import Hardening
from privshard.privacy.grid import release_on_grid
from privshard.privacy.stream import ChaChaStream

_COUNT_SHARE = 0.25
"""The count is released as this part of the radius: its error moves the mean less than the sum's own noise does."""


def noisy_mean(
    vector_UD: Tensor, *, radius: float, noise_multiplier: float, stream: ChaChaStream, hardening: Hardening = "none"
) -> Tensor:
    """The mean over units of vectors clipped to `radius`, with noise; float64 (D,) on the CPU.

    Released: sum_u (clip(v_u, r), r / 4) + N(0, (z s)^2) with s = r sqrt(1 + 1/16), the most that one unit can add:
    one Gaussian release with noise multiplier z. Everything after is post-processing: divided by the noisy count (at
    least 1), shrunk towards 0 by James and Stein's factor (1 - (D - 2) sigma^2 / |m|^2)_+, so that pure noise gives
    almost nothing, and kept inside the radius, where the true mean lies. A vector that is not finite counts as 0.

    vector_UD: one row a unit, on the device that is to sum them; no rows give a mean of noise like any other.
    noise_multiplier 0: the exact mean of the clipped vectors. radius > 0, a public constant. hardening "grid": noise is
    drawn as in `privshard.privacy.grid`.
    """
    vector_UD = torch.nan_to_num(vector_UD.detach().double(), nan=0.0, posinf=0.0, neginf=0.0)
    norm_U1 = vector_UD.norm(dim=1, keepdim=True)
    clipped_UD = vector_UD * torch.where(norm_U1 > radius, radius / norm_U1.clamp(min=radius), 1.0)
    sensitivity = radius * math.sqrt(1 + _COUNT_SHARE**2)
    std = noise_multiplier * sensitivity
    width = vector_UD.shape[1]
    count_unit = _COUNT_SHARE * radius
    total = torch.cat([clipped_UD.sum(0).cpu(), torch.tensor([len(vector_UD) * count_unit], dtype=torch.float64)])
    if std > 0 and hardening == "grid":
        released = release_on_grid(total, sensitivity=sensitivity, noise_multiplier=noise_multiplier, stream=stream)
    else:
        released = total + stream.normal(width + 1) * std if std > 0 else total
    count = max(1.0, released[-1].item() / count_unit)
    mean_D = released[:-1] / count
    squared = mean_D.square().sum().item()
    shrink = max(0.0, 1 - max(width - 2, 0) * (std / count) ** 2 / squared) if squared > 0 else 0.0
    mean_D = mean_D * shrink
    return mean_D * min(1.0, radius / max(mean_D.norm().item(), radius))
