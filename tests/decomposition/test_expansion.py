"""Sums of components: the same bits from every implementation, the right value from all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import blocks_by_loop

from privshard.decomposition.basis import Basis
from privshard.decomposition.expansion import combine, expand, expand_tensor

SHAPES = {"small": (3,), "matrix": (70, 60), "wide": (2, 9000)}  # within, across and beyond the slices


@pytest.fixture
def components() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((5, *shape), dtype=np.float32) for name, shape in SHAPES.items()}


def expanded(components, a_LK, *, threads) -> dict[str, list[np.ndarray]]:
    out = {name: [np.full(s.shape[1:], np.nan, np.float32) for _ in a_LK] for name, s in components.items()}
    expand(a_LK, components, out, threads=threads)
    return out


def test_equal_to_the_loop_up_to_single_precision(components):
    a_LK = Basis().coefficients(7, components=5)
    for name, blocks in expanded(components, a_LK, threads=1).items():
        np.testing.assert_allclose(blocks, blocks_by_loop(a_LK, components[name]), atol=3e-6)


def test_threads_and_libraries_give_the_same_bits(components):
    a_LK = Basis().coefficients(7, components=5)
    alone, together = (expanded(components, a_LK, threads=threads) for threads in (1, 3))
    for name, blocks in alone.items():
        in_torch = expand_tensor(torch.from_numpy(a_LK.astype(np.float32)), torch.from_numpy(components[name]))
        assert np.array_equal(blocks, together[name])
        assert np.array_equal(blocks, in_torch.numpy())


def test_one_matrix_product_is_the_same_sum(components):
    a_LK = torch.from_numpy(Basis().coefficients(7, components=5))
    stack = torch.from_numpy(components["matrix"]).double()
    np.testing.assert_allclose(combine(a_LK, stack), blocks_by_loop(a_LK.numpy(), stack.numpy()), atol=1e-13)
