"""Scores in a few batched operations against the hypernetwork's own forward pass, and how many operations they are."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from privshard.editing.hypernetwork import Hypernetwork, shape_for
from privshard.editing.locator import Locator
from privshard.editing.places import Place, Slot
from privshard.editing.scoring import scorer

MIXED = (("a", 0, (96, 24)), ("b", 0, (72, 24)), ("c", 1, (24, 24)), ("d", 1, (24, 96)), ("e", 1, (24, 96)))


def network(slots, *, depth: int = 2) -> Hypernetwork:
    """In double precision, with biases and norms that are not what they start at."""
    found = Hypernetwork(shape_for(width=24, num_heads=3, depth=depth, slots=slots), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return found.eval().requires_grad_(False)


def feature(num: int) -> torch.Tensor:
    return torch.randn(num, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Dispatched(TorchDispatchMode):
    """Names of all operations that reach a kernel or make a view."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def dispatched(run) -> list[str]:
    with torch.no_grad(), Dispatched() as seen:
        run()
    return seen.names


@pytest.mark.parametrize("num", [1, 5])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 1, 4, 0, 2), (0, 3, 4), (1,)])
def test_scores_are_those_of_the_forward_pass(num, order):
    net = network([Slot(*MIXED[at]) for at in order])
    expected, got = net(feature(num)), scorer(net).scores(feature(num))
    assert list(got) == list(expected)
    for name, score in expected.items():
        torch.testing.assert_close(got[name], score, rtol=1e-12, atol=1e-12)


def test_slots_cost_no_operations_and_nothing_waits():
    counts = []
    for num in (2, 12):
        net = network([Slot(f"{at}", at % 2, ((96, 24), (24, 96))[at % 2]) for at in range(num)])
        ready, told = scorer(net), feature(1)
        names = dispatched(lambda run=ready, x=told: run.scores(x))
        before = dispatched(lambda run=net, x=told: run(x))
        counts.append((len(names), len(before)))
        assert not {"_local_scalar_dense", "nonzero", "item"} & set(names)
    assert counts[0][0] == counts[1][0]
    assert counts[0][0] < 0.7 * counts[0][1]
    assert counts[1][0] <= 0.5 * counts[1][1]


def test_a_locator_scores_as_its_network():
    net = network([Slot(*item) for item in MIXED])
    locator = Locator(net, "b" * 64, (Place(1, "ffn"),), 3, {})
    for _ in range(2):
        for name, score in net(feature(3)).items():
            torch.testing.assert_close(locator.scores(feature(3))[name], score, rtol=1e-12, atol=1e-12)
