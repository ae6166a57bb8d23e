"""The coefficients of components over depth: polynomials of a block's place.

Letters: L blocks, K components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from privshard.core.errors import InputError

Polynomial = Literal["chebyshev", "fourier", "taylor", "legendre"]
ArgumentMap = Literal["symmetric", "unit", "nodes"]


@dataclass(frozen=True)
class Basis:
    """Functions f_n of depth, n = start, start + 1, …; component n enters block l with the weight f_n(u_l).

    polynomial: chebyshev T_n(u), legendre P_n(u), taylor u^n, or fourier 1, cos 2πu, sin 2πu, cos 4πu, …
    argument: where block l of L (from 1) stands. symmetric: equally spaced on [-1, 1], ends included (one block: -1);
    unit: u = (l - 1)/L, as the paper writes it; nodes: the Chebyshev nodes, u = -cos(π(l - 1/2)/L).

    Guaranteed: coefficients in double precision, and those of the first k components don't depend on how many follow.
    Not guaranteed: a well-conditioned matrix. For 12 blocks and 12 Chebyshev components its condition number is 42
    (symmetric), 1.4 (nodes), and 1.6e9 or, from T_1, 5.2e7 (unit). With start 1 some blocks of a model of few
    components are zero.

    Raises InputError for names and starts that don't exist, and for fourier on another map than unit: over the others
    its functions cannot tell the first block from the last.

    >>> Basis().coefficients(3, components=3).tolist()
    [[1.0, -1.0, 1.0], [1.0, 0.0, -1.0], [1.0, 1.0, 1.0]]

    Paper: Linearly Decomposing and Recomposing Vision Transformers, the sum over Chebyshev polynomials of depth.
    Test: tests/decomposition/test_basis.py.
    """

    polynomial: Polynomial = "chebyshev"
    start: int = 0
    argument: ArgumentMap = "symmetric"

    def __post_init__(self) -> None:
        for name, kind in (("polynomial", Polynomial), ("argument", ArgumentMap)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"basis.{name}: expected one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}."
                )
        if self.start not in (0, 1):
            raise InputError(f"basis.start: expected 0 or 1, got {self.start!r}.")
        if self.polynomial == "fourier" and self.argument != "unit":
            raise InputError(
                f"basis.argument: expected unit beside basis.polynomial fourier, got {self.argument}.",
                remedy="A full period on [-1, 1] gives the first and the last block the same coefficients.",
            )

    def arguments(self, depth: int) -> np.ndarray:
        """u_l of every block (L), in double precision."""
        if depth < 1:
            raise InputError(f"depth: expected at least 1, got {depth}.", remedy="A model has at least one block.")
        if self.argument == "symmetric":
            return np.linspace(-1.0, 1.0, depth)
        if self.argument == "unit":
            return np.arange(depth) / depth
        return -np.cos(np.pi * (np.arange(depth) + 0.5) / depth)

    def coefficients(self, depth: int, *, components: int) -> np.ndarray:
        """a(l, n) = f_n(u_l), double precision (L, K), for the first `components` functions."""
        if components < 1:
            raise InputError(f"components: expected at least 1, got {components}.")
        u_L, last = self.arguments(depth), self.start + components - 1
        if self.polynomial == "chebyshev":
            values = np.polynomial.chebyshev.chebvander(u_L, last)
        elif self.polynomial == "legendre":
            values = np.polynomial.legendre.legvander(u_L, last)
        elif self.polynomial == "taylor":
            values = np.polynomial.polynomial.polyvander(u_L, last)
        else:
            values = np.stack([_fourier(u_L, n) for n in range(last + 1)], axis=1)
        return np.ascontiguousarray(values[:, self.start :])

    def condition_number(self, depth: int, *, components: int) -> float:
        """Ratio of the largest to the smallest singular value of the coefficients; large means ill-conditioned."""
        return float(np.linalg.cond(self.coefficients(depth, components=components)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form; `Basis(**value)` is its inverse."""
        return {"polynomial": self.polynomial, "start": self.start, "argument": self.argument}


def _fourier(u_L: np.ndarray, n: int) -> np.ndarray:
    """1, cos 2πu, sin 2πu, cos 4πu, …"""
    phase_L = 2 * np.pi * ((n + 1) // 2) * u_L
    return np.cos(phase_L) if n % 2 or n == 0 else np.sin(phase_L)
