"""Evidence that the influence tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from privshard.influence.evidence import Evidence


@pytest.fixture
def make_evidence() -> Callable[..., Evidence]:
    """Random logits of `count` components, better than chance; weights are the plain mean unless given."""

    def make(
        count: int = 4, *, rows: int = 40, classes: int = 3, seed: int = 0, weights: Mapping[str, float] | None = None
    ) -> Evidence:
        rng = np.random.default_rng(seed)
        labels_B = rng.integers(0, classes, rows)
        ids = [f"c{index:02d}" for index in range(count)]
        return Evidence(
            rng.standard_normal((rows, classes)),
            {name: rng.standard_normal((rows, classes)) + np.eye(classes)[labels_B] for name in ids},
            {name: 1.0 / count for name in ids} if weights is None else weights,
            labels_B,
            tuple(f"class {index}" for index in range(classes)),
        )

    return make
