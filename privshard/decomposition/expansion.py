"""The weights of blocks as sums of components: W_l = sum_n a(l, n) A_n, with one order of rounding everywhere.

Letters: L blocks, K components, P numbers of one parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = 4096  # a slice of all blocks and one component stays in the processor's cache


def expand(
    coefficients_LK: np.ndarray,
    components: Mapping[str, np.ndarray],
    out: Mapping[str, Sequence[np.ndarray]],
    *,
    threads: int = 1,
) -> None:
    """Write every block's parameters: out[name][l] = sum_n a(l, n) components[name][n], in single precision.

    Coefficients are rounded to single precision once; products are rounded, then added in the order of n. So the bits
    depend on neither threads nor memory layout nor library, and `expand_tensor` gives the same ones.

    components: name -> (K, …), contiguous float32. out: name -> L arrays of that shape, written in place. Nothing else
    is allocated but a few hundred kilobytes a thread.

    Test: tests/decomposition/test_expansion.py.
    """
    a_LK = coefficients_LK.astype(np.float32)
    jobs = [
        (components[name].reshape(len(components[name]), -1), [array.reshape(-1) for array in arrays], start)
        for name, arrays in out.items()
        for start in range(0, components[name][0].size, _COLUMNS)
    ]

    def part(job: tuple[np.ndarray, list[np.ndarray], int]) -> None:
        stack_KP, rows, start = job
        piece_KP = stack_KP[:, start : start + _COLUMNS]
        total_LP = a_LK[:, :1] * piece_KP[0]
        product_LP = np.empty_like(total_LP)
        for n in range(1, len(piece_KP)):
            np.multiply(a_LK[:, n, None], piece_KP[n], out=product_LP)
            np.add(total_LP, product_LP, out=total_LP)
        for row, values in zip(rows, total_LP, strict=True):
            row[start : start + _COLUMNS] = values

    if threads == 1:
        for job in jobs:
            part(job)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(part, jobs):
            pass


def expand_tensor(a_LK: Tensor, stack: Tensor) -> Tensor:
    """One parameter of every block (L, …) from its components (K, …): the bits of `expand`, on any device.

    a_LK: the coefficients in single precision. Differentiable; slower than one matrix product.
    """
    shape = (-1,) + (1,) * (stack.ndim - 1)
    total = a_LK[:, 0].reshape(shape) * stack[0]
    for n in range(1, len(stack)):
        total = total + a_LK[:, n].reshape(shape) * stack[n]
    return total


def combine(a_LK: Tensor, stack: Tensor) -> Tensor:
    """The same sum as one matrix product: for training, where speed matters and the last bits don't."""
    return (a_LK.to(stack.dtype) @ stack.flatten(1)).unflatten(1, stack.shape[1:])
