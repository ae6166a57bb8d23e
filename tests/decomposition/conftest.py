"""What several tests of decompositions share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from privshard.decomposition import regional


@pytest.fixture
def graphs(monkeypatch) -> Iterator[list[Any]]:
    """What is compiled in the test, run as traced."""
    found = []

    def keep(graph, _):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    function = cache(lambda: torch.compile(regional._forward, backend=keep, dynamic=False, fullgraph=True))
    monkeypatch.setattr(regional, "_compiled", function)
    yield found
    torch._dynamo.reset()
