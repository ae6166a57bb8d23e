"""The tangent kernel of a shard, J J^T over its rows and classes, in the order of ids.

n examples, C classes, N = n C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from privshard.core.method import LinearMethod
from privshard.tangent.gram import cross_gram, gram_width
from privshard.tangent.places import Places
from privshard.training.linear_map import LinearMap


def kernel(method: LinearMethod, jacobian: LinearMap) -> Tensor | None:
    """J J^T, (N, N), row i * C + c for class c of example i, in double precision; None for a method whose gradients
    don't come in factors.

    Test: tests/training/test_kernel.py, against products with the Jacobian.
    """
    gradients = [_by_class(method, part, jacobian) for part in jacobian.batches()]
    if any(one is None for each in gradients for one in each):
        return None
    num, classes = jacobian.base_nC.shape
    out = torch.zeros(num, classes, num, classes, dtype=torch.float64, device=jacobian.device)
    starts = [0]
    for part in jacobian.batches():
        starts.append(starts[-1] + len(next(iter(part.values()))))
    for i, left in enumerate(gradients):
        for j, right in enumerate(gradients[: i + 1]):
            rows, columns = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
            for c, one in enumerate(left):
                for d, other in enumerate(right):
                    assert one is not None
                    assert other is not None
                    block = cross_gram(one, other).double()
                    out[rows, c, columns, d] = block
                    out[columns, d, rows, c] = block.mT
    return out.reshape(num * classes, num * classes)


def kernel_width(method: LinearMethod, jacobian: LinearMap) -> int | None:
    """About how many multiplications an entry of the kernel takes; None where `kernel` has no factors to use."""
    part = next(jacobian.batches())
    one = {name: tensor[:1] for name, tensor in part.items()}
    gradients = method.gradients(one, jacobian.zero, torch.ones_like(jacobian.base_nC[:1]).to(jacobian.dtype))
    return gram_width(gradients) if isinstance(gradients, Places) else None


def _by_class(method: LinearMethod, part: dict[str, Tensor], jacobian: LinearMap) -> list[Places | None]:
    """For each class the gradients of its logit, of all examples of a batch."""
    rows, classes = len(next(iter(part.values()))), jacobian.base_nC.shape[1]
    found: list[Places | None] = []
    for c in range(classes):
        cotangent_BC = torch.zeros(rows, classes, dtype=jacobian.dtype, device=jacobian.device)
        cotangent_BC[:, c] = 1
        gradients = method.gradients(part, jacobian.zero, cotangent_BC)
        found.append(gradients if isinstance(gradients, Places) else None)
    return found
