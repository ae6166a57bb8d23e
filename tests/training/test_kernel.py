"""The kernel of a shard against products with its Jacobian."""

from __future__ import annotations

import pytest
import torch

from privshard.training.kernel import kernel, kernel_width
from privshard.training.linear_map import LinearMap

IDS = ["b-1", "a-2", "c-1", "a-1", "d-7", "c-3", "e-1"]


@pytest.mark.parametrize("kind", ["class row", "head", "blocks"])
def test_columns_are_products_with_the_jacobian(make_method, make_shard, kind):
    shard = make_shard(make_method(kind)[0], IDS)
    method, _ = make_method(kind, dtype=torch.float64)
    constants = {name: tensor.double() for name, tensor in shard.constants.items()}
    jacobian = LinearMap(method, constants, ids=sorted(IDS), max_rows=3)
    found = kernel(method, jacobian)
    assert found is not None
    assert kernel_width(method, jacobian) > 0
    num, classes = jacobian.base_nC.shape
    for column in range(0, num * classes, 4):
        unit = torch.zeros(num * classes).double()
        unit[column] = 1
        expected = jacobian.times(jacobian.transposed(unit.view(num, classes)))
        torch.testing.assert_close(found[:, column], expected.flatten(), rtol=1e-8, atol=1e-8 * float(found.max()))


@pytest.mark.parametrize("kind", ["class row", "head", "blocks"])
def test_the_two_products_are_transposes(make_method, make_shard, kind):
    shard = make_shard(make_method(kind)[0], IDS)
    method, _ = make_method(kind, dtype=torch.float64)
    constants = {name: tensor.double() for name, tensor in shard.constants.items()}
    jacobian = LinearMap(method, constants, ids=sorted(IDS), max_rows=2)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(jacobian.size, generator=generator).double()
    cotangent = torch.randn(jacobian.base_nC.shape, generator=generator).double()
    left, right = (jacobian.times(direction) * cotangent).sum(), direction @ jacobian.transposed(cotangent)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    assert not jacobian.times(torch.zeros_like(direction)).any()
    assert not jacobian.transposed(0 * cotangent).any()
