"""Displacements are a vector space that acts exactly as torch does, and never mixes bases or spaces."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privshard.core.displacement import Displacement, zeros
from privshard.core.errors import InputError

# Small integers: sums and products are exact in fp32, so the laws of a vector space hold bit for bit.
NUMBERS = st.integers(-50, 50).map(float)
VECTORS = st.lists(NUMBERS, min_size=5, max_size=5)


def make(values, *, base="b", space="tangent"):
    tensors = {"head.bias": torch.tensor(values[:2]), "block.weight": torch.tensor(values[2:]).reshape(1, 3)}
    return Displacement(tensors, base=base, space=space)


def same(left, right):
    """Equal names, and equal values everywhere (0 and -0 are equal numbers)."""
    return left.names == right.names and all(torch.equal(left.tensors[n], right.tensors[n]) for n in left.names)


@given(VECTORS, VECTORS, VECTORS, NUMBERS, NUMBERS)
def test_laws_of_a_vector_space(x, y, z, a, b):
    u, v, w, zero = make(x), make(y), make(z), make([0.0] * 5)
    assert same(u + v, v + u)
    assert same((u + v) + w, u + (v + w))
    assert same(u + zero, u)
    assert same(u - u, zero)
    assert same(u - v, u + -v)
    assert same(a * (u + v), a * u + a * v)
    assert same((a + b) * u, a * u + b * u)
    assert same((a * b) * u, a * (b * u))
    assert same(u * a, a * u)
    assert same((u * 4) / 4, u)


@given(VECTORS, VECTORS)
def test_inner_product_agrees_with_a_plain_sum(x, y):
    assert make(x).dot(make(y)) == sum(left * right for left, right in zip(x, y, strict=True))
    assert make(x).norm() == sum(value * value for value in x) ** 0.5


def test_arithmetic_is_torch_bit_for_bit():
    values = torch.tensor([0.1, 1 / 3, 1e-30])
    one = Displacement({"a": values}, base="b", space="weight")
    assert torch.equal((one + one * 0.7).tensors["a"], values + values * 0.7)
    assert torch.equal((one / 3).tensors["a"], values / 3)
    assert (one + one).space == "weight"


def test_zeros_are_exact():
    origin = zeros({"a": (2, 3), "s": ()}, base="b", space="tangent")
    assert origin.tensors["a"].shape == (2, 3)
    assert origin.tensors["s"].shape == ()
    assert origin.tensors["a"].dtype == torch.float32
    assert origin.norm() == 0.0


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        (make([0.0] * 5, base="c"), "base: b against c"),
        (make([0.0] * 5, space="weight"), "space: tangent against weight"),
        (Displacement({"head.bias": torch.zeros(2)}, "b", "tangent"), r"block\.weight: \(1, 3\) against absent"),
        (zeros({"head.bias": (3,), "block.weight": (1, 3)}, base="b", space="tangent"), r"\(2,\) against \(3,\)"),
    ],
)
def test_different_kinds_never_mix(other, shown):
    mine = make([1.0] * 5)
    for combine in (lambda: mine + other, lambda: mine - other, lambda: mine.dot(other)):
        with pytest.raises(InputError, match=shown):
            combine()


def test_many_differences_are_counted():
    other = zeros({name: (1,) for name in "pqrs"}, base="c", space="weight")
    with pytest.raises(InputError, match="and 5 more"):
        make([1.0] * 5) + other


@given(VECTORS, VECTORS)
def test_digests_agree_exactly_when_bits_do(x, y):
    left, right = make(x), make(y)
    bits = [[tensor.numpy().tobytes() for tensor in item.tensors.values()] for item in (left, right)]
    assert (left.digest == right.digest) == (bits[0] == bits[1])


def test_digest_covers_base_space_names_types_and_shapes():
    x = [1.0, 2.0, 3.0, 4.0, 5.0]
    flat = Displacement({**make(x).tensors, "block.weight": torch.tensor(x[2:])}, "b", "tangent")
    named = Displacement({"head.bias": torch.tensor(x[:2]), "other": torch.tensor([x[2:]])}, "b", "tangent")
    kinds = [make(x), make(x, base="c"), make(x, space="weight"), flat, named, make(x).to(torch.float64)]
    assert len({item.digest for item in kinds}) == len(kinds)


def test_digest_is_of_content_not_of_its_container():
    grid = torch.arange(6.0).reshape(2, 3)
    turned = Displacement({"a": grid.T, "b": grid}, "b", "tangent")
    plain = Displacement({"b": grid.clone(), "a": grid.T.contiguous().requires_grad_()}, "b", "tangent")
    assert turned.digest == plain.digest
    assert pickle.loads(pickle.dumps(turned)).digest == turned.digest
