"""The Jacobian of a shard as a linear map: products with it and its transpose, in the order of ids.

n examples, C classes, P numbers of a displacement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from privshard.core.method import Constants, LinearMethod
from privshard.training.gather import take

_TOGETHER = 16  # directions whose products are computed at once


class LinearMap:
    """J of a method that is linear in its displacement, over the rows of one shard.

    Rows are taken in ascending order of `ids`, in batches of `max_rows`, and all sums are in double precision in that
    order: the order in which rows are given leaves no trace, not a bit. Products are computed in the method's own
    precision, of a direction scaled to unit norm, so that their relative error is that of the method.

    device: where it is computed; constants may lie elsewhere (`privshard.training.gather`).
    """

    def __init__(
        self,
        method: LinearMethod,
        constants: Constants,
        *,
        ids: Sequence[str],
        max_rows: int = 512,
        device: torch.device | None = None,
    ) -> None:
        device = device or next(iter(constants.values())).device
        self.device = device
        self._method = method
        self._shapes = dict(sorted(method.shapes().items()))
        self._order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
        self.order_n = torch.from_numpy(self._order).to(device)
        self._constants = constants
        self._max_rows = max_rows
        double = any(tensor.dtype == torch.float64 for tensor in constants.values())
        self.dtype = torch.float64 if double else torch.float32
        self.zero = {name: torch.zeros(shape, dtype=self.dtype, device=device) for name, shape in self._shapes.items()}
        self.size = sum(tensor.numel() for tensor in self.zero.values())
        self.base_nC = torch.cat([self._method.logits(part, self.zero).double() for part in self.batches()])

    def __len__(self) -> int:
        return len(self.order_n)

    def batches(self) -> Iterator[Constants]:
        """The constants, batch by batch."""
        for start in range(0, len(self), self._max_rows):
            part = take(self._constants, self._order[start : start + self._max_rows], device=self.device)
            yield {name: tensor.to(self.dtype) for name, tensor in part.items()}

    def times(self, direction_P: Tensor) -> Tensor:
        """J d, (n, C), in double precision."""
        norm = direction_P.norm()
        if not norm > 0:
            return torch.zeros_like(self.base_nC)
        unit = self.tensors(direction_P / norm)
        parts = [self._method.logits(part, unit).double() for part in self.batches()]
        return (torch.cat(parts) - self.base_nC) * norm

    def transposed(self, cotangent_nC: Tensor) -> Tensor:
        """J^T r, (P,), in double precision."""
        scale = cotangent_nC.abs().max()
        total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        if not scale > 0:
            return total
        start = 0
        for part in self.batches():
            rows = len(next(iter(part.values())))
            cotangent = (cotangent_nC[start : start + rows] / scale).to(self.dtype)
            gradients = self._method.gradients(part, self.zero, cotangent)
            total += self.flat(gradients.weighted_sum(torch.ones(rows, dtype=self.dtype, device=self.device)))
            start += rows
        return total * scale

    def times_each(self, direction_RP: Tensor) -> Tensor:
        """J d for each of R directions of about unit norm, (R, n, C): what doesn't depend on them is computed once."""
        parts = [
            torch.vmap(lambda d_P, part=part: self._method.logits(part, self.tensors(d_P)), chunk_size=_TOGETHER)(
                direction_RP
            ).double()
            for part in self.batches()
        ]
        return torch.cat(parts, dim=1) - self.base_nC

    def transposed_each(self, cotangent_RnC: Tensor) -> Tensor:
        """J^T r for each of R cotangents, (R, P)."""
        scale_R = cotangent_RnC.abs().amax((1, 2))
        unit_RnC = cotangent_RnC / torch.where(scale_R > 0, scale_R, 1.0)[:, None, None]
        total = torch.zeros(len(cotangent_RnC), self.size, dtype=torch.float64, device=self.device)
        start = 0
        for part in self.batches():
            rows = len(next(iter(part.values())))
            ones = torch.ones(rows, dtype=self.dtype, device=self.device)

            def pulled(r_nC: Tensor, part: Constants = part, ones: Tensor = ones) -> Tensor:
                return self.flat(self._method.gradients(part, self.zero, r_nC).weighted_sum(ones))

            batch_RnC = unit_RnC[:, start : start + rows].to(self.dtype)
            total += torch.vmap(pulled, chunk_size=_TOGETHER)(batch_RnC)
            start += rows
        return total * scale_R[:, None]

    def flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors by name as one vector in double precision, names in sorted order."""
        return torch.cat([tensors[name].double().flatten() for name in self._shapes])

    def tensors(self, vector_P: Tensor) -> dict[str, Tensor]:
        """The inverse of `flat`, in the method's precision: fp32, but for constants in double precision."""
        sizes = [tensor.numel() for tensor in self.zero.values()]
        parts = vector_P.to(self.dtype).split(sizes)
        return {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
