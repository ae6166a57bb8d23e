"""Scoring of components that were just trained: against the mean of their logits, taken one by one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from privshard.api.scoring import composed, right
from privshard.training.shard import Trained

COMPONENTS = [Trained({"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(n))}, 0.0, {}) for n in range(3)]
SQUARES = SimpleNamespace(logits=lambda constants, at: constants["x"] @ (at["w"] ** 2).T)
"""A model that is not linear in its displacement: an ensemble is not the average."""


def counted(constants, rule, rows_B, labels_B, max_rows):
    return right(SQUARES, constants, COMPONENTS, rule=rule, rows_B=rows_B, labels_B=labels_B, max_rows=max_rows)


def test_rows_are_scored_by_the_mean_displacement_or_by_the_mean_logits():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(9))
    rows_B = np.array([0, 3, 4, 5, 17, 30, 31, 49])
    each = [SQUARES.logits({"x": x}, part.tensors) for part in COMPONENTS]
    wanted = {
        "average": SQUARES.logits({"x": x}, {"w": sum(part.tensors["w"] for part in COMPONENTS) / 3}).argmax(1),
        "ensemble": (sum(each) / 3).argmax(1),
    }
    assert (wanted["average"] != wanted["ensemble"])[rows_B].any()
    for rule, labels_B in wanted.items():
        labels_B = labels_B.clone()
        labels_B[4] = (labels_B[4] + 1) % 3
        assert [counted({"x": x}, rule, rows_B, labels_B, rows) for rows in (1, 3, 100)] == [7, 7, 7]


def test_logits_that_are_not_finite_are_wrong():
    x = torch.ones(4, 4)
    x[2] = torch.nan
    labels_B = torch.zeros(4, dtype=torch.long)
    labels_B[:] = SQUARES.logits({"x": x[:1]}, composed(COMPONENTS, rule="average", device="cpu")[0]).argmax()
    labels_B[2] = SQUARES.logits({"x": x[2:3]}, COMPONENTS[0].tensors).argmax()
    assert counted({"x": x}, "average", np.arange(4), labels_B, 4) == 3
