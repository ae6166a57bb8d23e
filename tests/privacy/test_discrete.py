"""The discrete Gaussian against its exact probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare, kstest, norm

from privshard.privacy import discrete
from privshard.privacy.discrete import SCALE_BITS, discrete_gaussian
from privshard.privacy.stream import ChaChaStream, insecure_key


def stream(attempt=0):
    return ChaChaStream(insecure_key(5, shard=0, attempt=attempt), purpose="noise")


def exact(values, bits):
    weights = np.exp(-np.square(np.arange(-400, 401)) / (2 * 4.0**bits))
    return np.exp(-np.square(values) / (2 * 4.0**bits)) / weights.sum()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_scales_have_the_exact_probabilities(bits):
    drawn = discrete._discrete_gaussian(120_000, stream(bits), bits)
    reach = int(3.5 * 2**bits)
    values = np.arange(-reach, reach + 1)
    seen = np.array([(drawn == value).sum() for value in values])
    wanted = exact(values, bits) * len(drawn)
    rest = len(drawn) - seen.sum(), len(drawn) - wanted.sum()
    assert chisquare([*seen, rest[0]], [*wanted, rest[1]]).pvalue > 1e-3


def test_the_scale_in_use_is_gaussian_to_the_tails():
    drawn = discrete_gaussian(200_000, stream()) / 2**SCALE_BITS
    assert kstest(drawn, norm.cdf).pvalue > 1e-3
    for reach in (2.0, 3.0, 4.0):
        share, expected = (np.abs(drawn) > reach).mean(), 2 * norm.sf(reach)
        assert abs(share - expected) < 5 * (expected / len(drawn)) ** 0.5


@pytest.mark.parametrize(("numerator", "bits"), [(0, 3), (1, 3), (5, 3), (8, 3), (1, 0)])
def test_exp_minus_has_its_probability(numerator, bits):
    hits = discrete._exp_minus(np.full(60_000, numerator), bits, stream(numerator)).mean()
    wanted = np.exp(-numerator / 2**bits)
    assert abs(hits - wanted) <= 5 * (wanted * (1 - wanted) / 60_000) ** 0.5


def test_one_in_k_redraws_what_would_be_biased(monkeypatch):
    """Of 2^64 words the last one is left over for k = 3: it is redrawn."""
    words = [np.array([2**64 - 1, 6, 7], dtype=np.uint64), np.array([9], dtype=np.uint64)]

    class Scripted:
        def uint64(self, n):
            word = words.pop(0)
            assert len(word) == n
            return word

    assert discrete._one_in(3, 3, Scripted()).tolist() == [True, True, False]  # pyright: ignore[reportArgumentType]
    assert words == []


def test_equal_streams_draw_equal_numbers_and_attempts_differ():
    assert (discrete_gaussian(50, stream(1)) == discrete_gaussian(50, stream(1))).all()
    assert not (discrete_gaussian(50, stream(1)) == discrete_gaussian(50, stream(2))).any()
    assert len(discrete_gaussian(0, stream())) == 0
