"""GPU kernels against the reference in double precision."""

from __future__ import annotations

import pytest
import torch

from privshard.tangent.class_row import _covariance_product

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("shape", [(3, 5, 24, 2), (4, 65, 192, 3), (2, 197, 768, 12), (2, 257, 1024, 16)])
def test_covariance_product(shape):
    num, tokens, width, heads = shape
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator, device="cuda")

    n1_BND = draw(num, tokens, width).bfloat16()
    probs_BHN = torch.softmax(2 * draw(num, heads, tokens), dim=-1)
    x_BHD = draw(num, heads, width).bfloat16().float()
    constants = {"n1": n1_BND, "probs": probs_BHN, "mean": probs_BHN @ n1_BND.float()}
    found = _covariance_product(constants, x_BHD)
    expected = _covariance_product({name: tensor.double() for name, tensor in constants.items()}, x_BHD.double())
    assert found.dtype == torch.float32
    assert (found - expected).norm() <= 5e-3 * expected.norm()
