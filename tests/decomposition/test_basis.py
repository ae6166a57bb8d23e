"""Coefficients over depth against closed forms, and how well they are conditioned."""

from __future__ import annotations

import math

import numpy as np
import pytest
from oracles import chebyshev, legendre

from privshard.core.errors import InputError
from privshard.decomposition.basis import Basis

ARGUMENTS = {
    "symmetric": lambda block, depth: -1 + 2 * (block - 1) / (depth - 1),
    "unit": lambda block, depth: (block - 1) / depth,
    "nodes": lambda block, depth: -math.cos(math.pi * (block - 0.5) / depth),
}


def fourier(n: int, u: float) -> float:
    if n == 0:
        return 1.0
    return math.cos(math.pi * (n + 1) * u) if n % 2 else math.sin(math.pi * n * u)


CLOSED = {"chebyshev": chebyshev, "legendre": legendre, "taylor": lambda n, u: u**n, "fourier": fourier}


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("polynomial", CLOSED)
@pytest.mark.parametrize("start", [0, 1])
def test_coefficients_are_the_closed_forms_in_double_precision(polynomial, start, argument):
    if polynomial == "fourier" and argument != "unit":
        with pytest.raises(InputError, match=r"basis\.argument: expected unit beside basis\.polynomial fourier"):
            Basis(polynomial, start, argument)
        return
    found = Basis(polynomial, start, argument).coefficients(12, components=12)
    assert found.dtype == np.float64
    expected = [
        [CLOSED[polynomial](n, ARGUMENTS[argument](block, 12)) for n in range(start, start + 12)]
        for block in range(1, 13)
    ]
    assert np.abs(found - expected).max() < 1e-13


def closed_condition(start: int, argument: str) -> float:
    values = np.array(
        [[chebyshev(n, ARGUMENTS[argument](block, 12)) for n in range(start, start + 12)] for block in range(1, 13)]
    )
    singular = np.sqrt(np.linalg.eigvalsh(values @ values.T))
    return float(singular[-1] / singular[0]) if argument != "unit" else float(np.linalg.cond(values))


@pytest.mark.parametrize(
    ("start", "argument", "expected"),
    [
        (1, "unit", 5.2e7),
        (0, "unit", 1.57e9),
        (0, "symmetric", 42.1),
        (1, "symmetric", 39.7),
        (0, "nodes", math.sqrt(2)),
    ],
)
def test_condition_numbers_of_twelve_blocks(start, argument, expected):
    found = Basis("chebyshev", start, argument).condition_number(12, components=12)
    assert found == pytest.approx(closed_condition(start, argument), rel=1e-4)
    assert found == pytest.approx(expected, rel=0.02)


def test_as_the_paper_writes_it_the_first_block_of_one_component_is_zero():
    assert Basis("chebyshev", 1, "unit").coefficients(12, components=1)[0, 0] == 0
    assert np.all(Basis("chebyshev", 0, "unit").coefficients(12, components=1) == 1)


@pytest.mark.parametrize("polynomial", CLOSED)
def test_the_first_components_do_not_depend_on_how_many_follow(polynomial):
    basis = Basis(polynomial, 0, "unit")
    assert np.array_equal(basis.coefficients(7, components=3), basis.coefficients(7, components=6)[:, :3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Basis("hermite"), "basis.polynomial: expected one of chebyshev, fourier, taylor, legendre, got 'her"),
        (lambda: Basis(argument="sideways"), "basis.argument: expected one of"),
        (lambda: Basis(start=2), "basis.start: expected 0 or 1, got 2"),
        (lambda: Basis().coefficients(0, components=1), "depth: expected at least 1, got 0"),
        (lambda: Basis().coefficients(3, components=0), "components: expected at least 1, got 0"),
    ],
)
def test_what_does_not_exist_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_basis_survives_json():
    basis = Basis("legendre", 1, "nodes")
    assert Basis(**basis.to_json()) == basis
