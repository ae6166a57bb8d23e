"""The discrete Gaussian: integers drawn exactly, by comparisons of random integers alone."""

from __future__ import annotations

import numpy as np

from privshard.privacy.stream import ChaChaStream

SCALE_BITS = 24
_FAR = 64  # beyond 64 standard deviations acceptance is below exp(-1984), and counts as refused


def discrete_gaussian(n: int, stream: ChaChaStream) -> np.ndarray:
    """`n` integers, P(x) proportional to exp(-x^2 / (2 s^2)) with s = 2^SCALE_BITS; int64.

    Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), algorithms 1 to 3, for many numbers at once: a discrete Laplace
    variable of scale s is accepted with probability exp(-(|y| - s)^2 / (2 s^2)). Every probability is a ratio of
    integers, compared with uniform integers of the stream, so there is no rounding anywhere: low-order bits carry
    nothing but the noise, which a Gaussian computed in floating point can't promise (Mironov 2012).
    Not guaranteed: protection against timing; how long it takes depends on the stream.

    Compared with the exact probabilities, at a small scale too, in tests/privacy/test_discrete.py.
    """
    return _discrete_gaussian(n, stream, SCALE_BITS)


def _discrete_gaussian(n: int, stream: ChaChaStream, bits: int) -> np.ndarray:
    out = np.empty(n, dtype=np.int64)
    filled = 0
    while filled < n:
        laplace = _discrete_laplace((n - filled) * 7 // 5 + 16, stream, bits)
        kept = laplace[_accepted(np.abs(laplace), stream, bits)][: n - filled]
        out[filled : filled + len(kept)] = kept
        filled += len(kept)
    return out


def _accepted(magnitude: np.ndarray, stream: ChaChaStream, bits: int) -> np.ndarray:
    """True with probability exp(-(m - s)^2 / (2 s^2)), each for itself."""
    near = magnitude < _FAR << bits
    distance = np.where(near, magnitude - (1 << bits), 0)
    numerator = distance * distance  # over 2^(2 bits + 1); below 2^(12 + 2 bits), which fits
    whole, part = numerator >> (2 * bits + 1), numerator & ((1 << (2 * bits + 1)) - 1)
    result = near & _exp_minus(part, 2 * bits + 1, stream)
    while True:
        more = np.flatnonzero(result & (whole > 0))
        if not len(more):
            return result
        result[more] = _exp_minus(np.full(len(more), 1, np.int64), 0, stream)
        whole[more] -= 1


def _discrete_laplace(n: int, stream: ChaChaStream, bits: int) -> np.ndarray:
    """About n integers, P(x) proportional to exp(-|x| / 2^bits): those of the first tries that were not refused."""
    low = (stream.uint64(n * 8 // 5 + 16) >> np.uint64(64 - bits)).astype(np.int64)
    low = low[_exp_minus(low, bits, stream)]
    high = np.zeros(len(low), dtype=np.int64)
    going = np.arange(len(low))
    while len(going):
        going = going[_exp_minus(np.full(len(going), 1, np.int64), 0, stream)]
        high[going] += 1
    negative = (stream.uint64(len(low)) & np.uint64(1)).astype(bool)
    magnitude = low + (np.minimum(high, _FAR) << bits)
    return np.where(negative, -magnitude, magnitude)[~(negative & (magnitude == 0))]


def _exp_minus(numerator: np.ndarray, bits: int, stream: ChaChaStream) -> np.ndarray:
    """True with probability exp(-g), g = numerator / 2^bits in [0, 1]: whether the first k to fail with probability
    1 - g / k is odd (von Neumann)."""
    odd = np.zeros(len(numerator), dtype=bool)
    going, k = np.arange(len(numerator)), 0
    while len(going):
        k += 1
        succeeds = _below(numerator[going], bits, stream)
        if k > 1:
            lucky = np.flatnonzero(succeeds)
            succeeds[lucky] = _one_in(k, len(lucky), stream)
        odd[going[~succeeds]] = k % 2 == 1
        going = going[succeeds]
    return odd


def _below(numerator: np.ndarray, bits: int, stream: ChaChaStream) -> np.ndarray:
    """True with probability numerator / 2^bits."""
    if bits == 0:
        return numerator > 0
    return (stream.uint64(len(numerator)) >> np.uint64(64 - bits)).astype(np.int64) < numerator


def _one_in(k: int, n: int, stream: ChaChaStream) -> np.ndarray:
    """True with probability 1 / k: a uniform integer below a multiple of k is divisible by it; others are redrawn."""
    words = stream.uint64(n).copy()
    limit = np.uint64((1 << 64) // k * k - 1)
    while (over := np.flatnonzero(words > limit)).size:
        words[over] = stream.uint64(over.size)
    return words % np.uint64(k) == 0
