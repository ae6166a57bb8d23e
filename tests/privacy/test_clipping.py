import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privshard.core.errors import InputError
from privshard.privacy.clipping import clip_factors, nonfinite, zero_nonfinite

SIZES = st.floats(min_value=1e-12, max_value=1e12)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), SIZES)
def test_the_clipped_norm_never_exceeds_the_bound_beyond_rounding(values, bound):
    g = torch.tensor(values, dtype=torch.float64)
    factor = clip_factors(g.square().sum().reshape(1), max_grad_norm=bound)
    assert 0 <= factor.item() <= 1
    assert (g * factor).norm().item() <= bound * (1 + 1e-14)


@given(SIZES, st.sampled_from([torch.float32, torch.float64]))
def test_at_and_below_the_bound_the_factor_is_exactly_one(bound, dtype):
    bound = torch.tensor(bound, dtype=dtype).item()
    norms = torch.tensor([0.0, bound * 1e-9, bound / 2, bound * (1 - 1e-3)], dtype=dtype)
    assert clip_factors(norms.square(), max_grad_norm=bound).tolist() == [1.0] * 4


@given(SIZES, st.floats(1.01, 1e6))
def test_above_the_bound_the_clipped_norm_is_the_bound(bound, ratio):
    norm = bound * ratio
    factor = clip_factors(torch.tensor([norm**2], dtype=torch.float64), max_grad_norm=bound)
    assert factor.item() * norm == pytest.approx(bound, rel=1e-14)


def test_exact_values():
    squares = torch.tensor([0.0, 1.0, 4.0, 16.0, -1e-12])
    assert clip_factors(squares, max_grad_norm=1.0).tolist() == [1.0, 1.0, 0.5, 0.25, 1.0]
    assert clip_factors(squares[:0], max_grad_norm=1.0).shape == (0,)


def test_non_finite_units_get_factor_zero():
    squares = torch.tensor([math.nan, math.inf, -math.inf, 4.0])
    assert clip_factors(squares, max_grad_norm=1.0).tolist() == [0.0, 0.0, 0.0, 0.5]
    assert nonfinite(squares).tolist() == [True, True, True, False]


def test_a_non_finite_unit_contributes_zero_to_the_sum():
    g_UD = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    clean = g_UD.clone()
    g_UD[1, 2], g_UD[3] = math.nan, math.inf
    squares = g_UD.square().sum(1)
    total = clip_factors(squares, max_grad_norm=1.0) @ zero_nonfinite(g_UD, nonfinite(squares))
    kept = clean[[0, 2]]
    assert torch.allclose(total, clip_factors(kept.square().sum(1), max_grad_norm=1.0) @ kept)


def test_zero_nonfinite_keeps_the_bits_shape_and_type_of_the_others():
    x_UND = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = zero_nonfinite(x_UND, torch.tensor([False, True, False]))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[[0, 2]], x_UND[[0, 2]])
    assert not out[1].any()


def test_a_bound_whose_square_underflows_is_refused():
    with pytest.raises(InputError, match="max_grad_norm"):
        clip_factors(torch.tensor([1.0]), max_grad_norm=1e-30)
    assert clip_factors(torch.tensor([1.0]).double(), max_grad_norm=1e-30).item() == 1e-30
