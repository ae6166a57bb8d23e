"""Each rule against torch's own derivatives, in double precision."""

from __future__ import annotations

import math

import pytest
import timm.layers
import torch
from torch import nn
from torch.nn import functional as F

from privshard.tangent import rules

EPS = 1e-6


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_normalize_is_layer_norm_and_gives_its_inverse_deviation():
    x = 3 * draw(4, 5, 7) + 2
    n, rstd = rules.normalize(x, EPS)
    torch.testing.assert_close(n, F.layer_norm(x, (7,), eps=EPS), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rstd[..., 0], (x.var(-1, unbiased=False) + EPS).rsqrt(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e-3])  # at 1e-3 epsilon is as large as the variance
def test_tangent_of_layer_norm(scale):
    x, dx = scale * draw(4, 5, 7), draw(4, 5, 7, seed=1)
    n, rstd = rules.normalize(x, EPS)
    _, expected = torch.func.jvp(lambda x: F.layer_norm(x, (7,), eps=EPS), (x,), (dx,))
    torch.testing.assert_close(rules.normalize_tangent(n, rstd, dx), expected, rtol=1e-11, atol=1e-11)


def test_tangent_of_layer_norm_is_its_own_transpose():
    x, dx, cotangent = draw(6, 7), draw(6, 7, seed=1), draw(6, 7, seed=2)
    n, rstd = rules.normalize(x, EPS)
    forward = (cotangent * rules.normalize_tangent(n, rstd, dx)).sum()
    back = (rules.normalize_tangent(n, rstd, cotangent) * dx).sum()
    torch.testing.assert_close(forward, back, rtol=1e-13, atol=0)


def test_layer_norm_of_a_constant_row_stays_finite():
    n, rstd = rules.normalize(torch.full((1, 4), 2.0), EPS)
    assert n.tolist() == [[0.0] * 4]
    assert torch.isfinite(rules.normalize_tangent(n, rstd, torch.ones(1, 4))).all()


def test_slope_of_gelu_at_zero_is_exactly_one_half():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert rules.activation_slope(nn.GELU(), torch.zeros(3, dtype=dtype)).tolist() == [0.5] * 3


def test_slope_of_gelu_is_its_formula_and_its_limits_are_finite():
    x = torch.tensor([-40.0, -3.0, -0.5, 0.5, 3.0, 40.0], dtype=torch.float64)
    slope = rules.activation_slope(nn.GELU(), x)
    for value, found in zip(x.tolist(), slope.tolist(), strict=True):
        cdf = 0.5 * math.erfc(-value / math.sqrt(2))
        density = math.exp(-0.5 * value**2) / math.sqrt(2 * math.pi)
        assert found == pytest.approx(cdf + value * density, rel=1e-12, abs=1e-15)
    assert (slope[0], slope[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    "act",
    [
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.ReLU(),
        nn.SiLU(),
        nn.Tanh(),
        nn.ELU(),
        timm.layers.GELU(),
        timm.layers.GELUTanh(),
        timm.layers.QuickGELU(),
    ],
    ids=repr,
)
def test_slopes_of_activations(act):
    x = torch.cat([draw(50), torch.tensor([-20.0, -0.0, 0.0, 20.0], dtype=torch.float64)]).requires_grad_()
    (expected,) = torch.autograd.grad(act(x).sum(), x)
    torch.testing.assert_close(rules.activation_slope(act, x.detach()), expected, rtol=1e-12, atol=1e-15)
    step = 1e-5
    by_differences = (act(x + step) - act(x - step)).detach() / (2 * step)
    smooth = x.detach().abs() > 2 * step
    torch.testing.assert_close(expected[smooth], by_differences[smooth], rtol=1e-8, atol=1e-8)


def test_slopes_need_no_gradient_mode():
    with torch.no_grad():
        assert rules.activation_slope(nn.SiLU(), torch.zeros(2)).tolist() == [0.5, 0.5]


def heads(*, queries: int = 5) -> list[torch.Tensor]:
    """q, k, v, dq, dk, dv."""
    rows = (queries, 5, 5) * 2
    return [draw(2, 3, num, 4, seed=seed) for seed, num in enumerate(rows)]


@pytest.mark.parametrize("queries", [1, 5])
def test_attention_and_its_tangent(queries):
    q, k, v, *tangents = heads(queries=queries)
    probs, out = rules.softmax_attention(q, k, v, 0.5)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, scale=0.5), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 3, queries).double(), rtol=1e-14, atol=0)

    def plain(q, k, v):
        return torch.softmax(0.5 * q @ k.mT, dim=-1) @ v

    _, expected = torch.func.jvp(plain, (q, k, v), tuple(tangents))
    found = rules.attention_tangent(probs, q, k, v, *tangents, 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_a_shift_of_all_keys_does_not_move_attention():
    q, k, v, _, dk, _ = heads()
    probs, _ = rules.softmax_attention(q, k, v, 0.5)
    shift = dk[:, :, :1].expand_as(dk)
    moved = rules.attention_tangent(probs, q, k, v, torch.zeros_like(q), shift, torch.zeros_like(v), 0.5)
    assert moved.abs().max() < 1e-14


def test_heads_split_as_timm_does_and_join_back():
    x_BNF = draw(2, 5, 3 * 12)
    q, k, v = x_BNF.reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    split = rules.split_heads(x_BNF, 9)
    assert torch.equal(split, torch.cat([q, k, v], dim=1))
    assert torch.equal(rules.join_heads(split), x_BNF)
