"""The covariance kernel against its reference in double precision: on a GPU, and interpreted where there is none."""

from __future__ import annotations

import itertools

import pytest
import torch
from interpreted import interpreted

from privshard.core.method import ROWS
from privshard.tangent.class_row import covariance_product

SMALL = [(3, 5, 24, 2), (2, 65, 192, 3), (1, 40, 384, 6)]
LARGE = [(4, 65, 192, 3), (2, 197, 768, 12), (2, 257, 1024, 16)]


def relative_error(shape, *, device: str, dtype: torch.dtype, rows: bool, gain: bool) -> float:
    """The kernel's distance from the reference, by the reference's norm."""
    from privshard.tangent import kernels

    num, tokens, width, heads = shape
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator, device=device)

    n1_BND = draw(num + 2, tokens, width).to(dtype)
    rows_B = torch.arange(num + 1, 1, -1, device=device) if rows else None
    mine_BND = n1_BND[:num] if rows_B is None else n1_BND[rows_B]
    probs_BHN = torch.softmax(2 * draw(num, heads, tokens), dim=-1)
    mean_BHD, x_HBD = probs_BHN @ mine_BND.float(), draw(heads, num, width).to(dtype)
    gain_D = draw(width) if gain else None
    found = kernels.covariance_product(
        n1_BND if rows else mine_BND, probs_BHN, mean_BHD, x_HBD, gain_D=gain_D, rows_B=rows_B
    )
    assert found.dtype == dtype
    constants = {"n1": mine_BND, "probs": probs_BHN, "mean": mean_BHD}
    constants = {name: tensor.double() for name, tensor in constants.items()}
    expected = covariance_product(constants, x_HBD.double(), gain_D=None if gain_D is None else gain_D.double())
    return float((found - expected).norm() / expected.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize(("rows", "gain"), [(False, False), (True, True)])
def test_on_a_gpu(shape, rows, gain):
    assert relative_error(shape, device="cuda", dtype=torch.bfloat16, rows=rows, gain=gain) < 8e-3


def test_interpreted():
    interpreted("test_kernels", "check_interpreted", beside=__file__)


def check_interpreted() -> None:
    """In fp16, since the interpreter computes with numpy."""
    for shape, rows, gain in itertools.product(SMALL, (False, True), (False, True)):
        assert relative_error(shape, device="cpu", dtype=torch.float16, rows=rows, gain=gain) < 1e-3


@pytest.mark.gpu
def test_the_engine_takes_the_kernel_and_reads_rows_in_place(monkeypatch):
    from privshard.tangent import kernels

    seen = []
    real = kernels.covariance_product
    monkeypatch.setattr(
        kernels, "covariance_product", lambda *args, **options: seen.append(options) or real(*args, **options)
    )
    n1_BND = torch.randn(6, 5, 24, device="cuda").bfloat16()
    rows_B = torch.tensor([4, 0], device="cuda")
    probs_BHN = torch.softmax(torch.randn(2, 2, 5, device="cuda"), dim=-1)
    constants = {"n1": n1_BND, "probs": probs_BHN, "mean": probs_BHN @ n1_BND[rows_B].float(), ROWS: rows_B}
    x_HBD = torch.randn(2, 2, 24, device="cuda").bfloat16()
    covariance_product(constants, x_HBD)
    assert seen[0]["rows_B"] is rows_B
