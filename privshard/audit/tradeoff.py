"""Trade-off curves: what distinguishes a composed Gaussian mechanism from itself with one unit more.

mu: the shift of one release in standard deviations of its noise, where the unit takes part. Everything here bounds
epsilon from below: the accountants of `privshard.privacy` bound it from above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_GRID_ERROR = 0.01  # the most that rounding losses down to the grid takes off epsilon, over all steps
_MAX_GRID = 1 << 21
_TAIL = 12.0  # standard deviations of the total loss that the grid covers to both sides


@dataclass(frozen=True)
class ComposedGaussian:
    """`steps` releases, each with the unit in it independently with probability `sample_rate`, shifted by `mu`."""

    mu: float
    sample_rate: float
    steps: int

    def epsilon(self, delta: float) -> float:
        """A lower bound on the epsilon at `delta`: exact to rounding for rate 1, else within `_GRID_ERROR` or so."""
        if self.mu <= 0 or self.sample_rate <= 0:
            return 0.0
        if self.sample_rate >= 1:
            return gaussian_epsilon(self.mu * math.sqrt(self.steps), delta=delta)
        return _losses(self.mu, self.sample_rate, self.steps).epsilon(delta)

    def misses(self, false_alarms: np.ndarray) -> np.ndarray:
        """The least probability of missing a member, at each probability of a false alarm."""
        from scipy.special import ndtr, ndtri

        if self.sample_rate >= 1:
            return ndtr(ndtri(1 - false_alarms) - self.mu * math.sqrt(self.steps))
        return _losses(self.mu, self.sample_rate, self.steps).misses(false_alarms)


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """The epsilon of N(0, 1) against N(mu, 1) at `delta`, exactly (Balle and Wang 2018, theorem 8).

    >>> round(gaussian_epsilon(1.0, delta=gaussian_delta(1.0, epsilon=2.0)), 9)
    2.0
    """
    if mu <= 0 or gaussian_delta(mu, epsilon=0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(mu, epsilon=high) > delta:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, epsilon=middle) > delta else (low, middle)
    return low


def gaussian_delta(mu: float, *, epsilon: float) -> float:
    """Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu)."""
    from scipy.special import log_ndtr

    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(-math.expm1(second - first) * math.exp(first)) if second < first else 0.0


def claimed_misses(false_alarms: np.ndarray, *, epsilon: float, delta: float) -> np.ndarray:
    """The least probability of a miss that (epsilon, delta) allows:
    max(0, 1 - delta - e^epsilon x, e^-epsilon (1 - delta - x))."""
    steep = 1 - delta - math.exp(min(epsilon, 700.0)) * false_alarms
    return np.maximum(0.0, np.maximum(steep, math.exp(-epsilon) * (1 - delta - false_alarms)))


@dataclass(frozen=True)
class Losses:
    """Probabilities of the total privacy loss on a grid, ascending; every loss was rounded down, so that
    delta(epsilon) = E (1 - exp(epsilon - loss))_+ is never above the mechanism's own.

    hits: P[loss >= grid] with the unit; alarms: the same without it.
    """

    loss_G: np.ndarray
    hits_G: np.ndarray
    alarms_G: np.ndarray

    @staticmethod
    def of(loss_G: np.ndarray, mass_G: np.ndarray) -> Losses:
        """From the probability of every loss with the unit."""
        kept = slice(*np.flatnonzero(mass_G > 1e-18)[[0, -1]] + [0, 1])
        loss_G, mass_G = loss_G[kept], mass_G[kept]
        hits_G = np.cumsum(mass_G[::-1])[::-1]
        alarms_G = np.cumsum((mass_G * np.exp(-loss_G))[::-1])[::-1]
        return Losses(loss_G, np.minimum(hits_G, 1.0), np.minimum(alarms_G, 1.0))

    def delta(self, epsilon: float) -> float:
        """delta(epsilon)."""
        at = int(np.searchsorted(self.loss_G, epsilon))
        if at == len(self.loss_G):
            return 0.0
        return float(self.hits_G[at] - math.exp(epsilon) * self.alarms_G[at])

    def epsilon(self, delta: float) -> float:
        """The largest epsilon >= 0 with delta(epsilon) > delta."""
        low, high = 0.0, float(self.loss_G[-1])
        if high <= 0 or self.delta(0.0) <= delta:
            return 0.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.delta(middle) > delta else (low, middle)
        return low

    def misses(self, false_alarms: np.ndarray) -> np.ndarray:
        """Type II against type I errors of thresholds on the loss, by linear interpolation."""
        return 1 - np.interp(false_alarms, np.r_[0.0, self.alarms_G[::-1], 1.0], np.r_[0.0, self.hits_G[::-1], 1.0])


@lru_cache(maxsize=64)
def _losses(mu: float, sample_rate: float, steps: int) -> Losses:
    """The total loss of `steps` subsampled Gaussians, by the Fourier transform of one step's rounded loss.

    One step: L = log(1 - q + q exp(mu y - mu^2 / 2)) with y from (1 - q) N(0, 1) + q N(mu, 1). This is the direction of
    adjacency (a unit more) that has the larger delta; whatever one direction shows bounds epsilon from below.
    """
    coarse = _GRID_ERROR * min(1.0, mu)
    lowest, mass_J = _one_step(mu, sample_rate, coarse)
    loss_J = lowest + (np.arange(len(mass_J)) + 0.5) * coarse
    mean = float(loss_J @ mass_J)
    deviation = math.sqrt(steps * float((loss_J - mean) ** 2 @ mass_J))
    width = 2 * max(_TAIL * deviation + 1.0, float(loss_J[-1]))
    spacing = max(_GRID_ERROR / steps, width / _MAX_GRID)
    size = 1 << math.ceil(math.log2(width / spacing))
    lowest, mass_J = _one_step(mu, sample_rate, spacing)
    wrapped_G = np.bincount(np.arange(len(mass_J)) % size, weights=mass_J, minlength=size)
    total_G = np.maximum(np.fft.irfft(np.fft.rfft(wrapped_G) ** steps, size), 0.0)
    # Index j stands for the losses steps * lowest + (j + k size) spacing; the k that is nearest to the mean is meant.
    base = steps * lowest
    index_G = math.floor((steps * mean - base) / spacing) - size // 2 + np.arange(size)
    return Losses.of(base + index_G * spacing, total_G[index_G % size])


def _one_step(mu: float, sample_rate: float, spacing: float) -> tuple[float, np.ndarray]:
    """(lowest loss, probability that the loss rounds down to lowest + j * spacing)."""
    from scipy.special import ndtr

    low, high = (_loss(y, mu, sample_rate) for y in (-9.0, 9.0 + mu))
    low = math.floor(low / spacing) * spacing
    edges_J = low + spacing * np.arange(max(2, math.ceil((high - low) / spacing) + 1))
    y_J = _place(edges_J, mu, sample_rate)
    below_J = (1 - sample_rate) * ndtr(y_J) + sample_rate * ndtr(y_J - mu)
    mass_J = np.maximum(np.diff(below_J), 0.0)
    mass_J[-1] += 1 - below_J[-1]  # what is above the last edge is rounded down to it; below the first is left out
    return low, mass_J


def _loss(y: float, mu: float, sample_rate: float) -> float:
    """log(1 - q + q exp(mu y - mu^2 / 2))."""
    return float(np.logaddexp(math.log1p(-sample_rate), math.log(sample_rate) + mu * y - mu * mu / 2))


def _place(loss_J: np.ndarray, mu: float, sample_rate: float) -> np.ndarray:
    """The y whose loss it is; minus infinity below all losses."""
    with np.errstate(divide="ignore"):
        rest_J = np.log(np.maximum(np.expm1(loss_J) + sample_rate, 0.0))
    return (rest_J - math.log(sample_rate) + mu * mu / 2) / mu
