"""`compose`: the mean of displacements, and agreement with what is averaged on disk."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import privshard
from privshard.composition.average import average
from privshard.core.displacement import Displacement
from privshard.core.errors import InputError


def _random(seed: int, *, space="tangent", dtype=torch.float32) -> Displacement:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"w": torch.randn(5, 3, generator=generator, dtype=dtype), "b": torch.randn(3, generator=generator)}
    return Displacement({name: tensor.to(dtype) for name, tensor in tensors.items()}, base="base", space=space)


def test_default_is_the_mean():
    items = [_random(seed) for seed in range(5)]
    expected = torch.stack([item.tensors["w"].double() for item in items]).mean(0)
    torch.testing.assert_close(privshard.compose(items).tensors["w"].double(), expected, rtol=0, atol=1e-7)


def test_one_displacement_comes_back_bit_for_bit():
    assert privshard.compose([_random(0)]).digest == _random(0).digest


def test_order_leaves_no_trace():
    items, weights = [_random(seed) for seed in range(6)], [0.1, 0.7, -0.3, 0.2, 0.2, 0.1]
    backwards = privshard.compose(items[::-1], weights=weights[::-1])
    assert backwards.digest == privshard.compose(items, weights=weights).digest


def test_gives_the_bits_of_the_average_on_disk(tmp_path):
    items, weights = [_random(seed) for seed in range(7)], [0.4, 0.3, 0.2, 0.1, 1 / 3, 1 / 7, 0.77]
    paths = {item.digest: tmp_path / item.digest for item in items}
    for item in items:
        save_file(dict(item.tensors), str(paths[item.digest]), metadata={"base": item.base, "space": item.space})
    stored = average(paths, dict(zip(paths, weights, strict=True)))
    composed = privshard.compose(items, weights=weights)
    assert {name: array.tobytes() for name, array in stored.items()} == {
        name: composed.tensors[name].numpy().tobytes() for name in composed.names
    }


def test_precision_is_that_of_the_widest_tensor():
    mixed = privshard.compose([_random(0), _random(1, dtype=torch.float64)])
    assert {tensor.dtype for tensor in mixed.tensors.values()} == {torch.float64}
    assert privshard.compose([_random(0), _random(1)]).tensors["w"].dtype == torch.float32


def test_gradients_flow_through():
    tensor = torch.ones(2, requires_grad=True)
    item = Displacement({"x": tensor}, base="base", space="tangent")
    privshard.compose([item, item.to(torch.float32)], weights=[0.5, 2.0]).tensors["x"].sum().backward()
    assert tensor.grad is not None
    assert tensor.grad.tolist() == [2.5, 2.5]


def test_what_cannot_be_composed_is_refused():
    with pytest.raises(InputError, match="at least one displacement"):
        privshard.compose([])
    with pytest.raises(InputError, match="expected 2 weights, one a displacement, got 1"):
        privshard.compose([_random(0), _random(1)], weights=[1.0])
    with pytest.raises(InputError, match="expected finite weights"):
        privshard.compose([_random(0)], weights=[float("nan")])
    with pytest.raises(InputError, match=r"space: (tangent against weight|weight against tangent)"):
        privshard.compose([_random(0), _random(1, space="weight")])
