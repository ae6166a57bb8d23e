"""A recorded step takes exactly the steps that are launched one by one."""

from __future__ import annotations

import pytest
import torch
from tiny_vits import NUM_CLASSES, images, tiny_vit

from privshard.core.jobs import TrainingParams
from privshard.core.privacy import MechanismPlan
from privshard.models.vit import freeze, view_vit
from privshard.privacy.stream import insecure_key
from privshard.tangent.engine import tangent_engine
from privshard.training import shard
from privshard.training.shard import train_shard


@pytest.mark.gpu
@pytest.mark.parametrize("max_rows", [64, 5])
def test_recorded_steps_are_the_same_bit_for_bit(max_rows: int, monkeypatch: pytest.MonkeyPatch):
    view = view_vit(freeze(tiny_vit(dtype=torch.float32)).cuda())
    method = tangent_engine(view, blocks=1)
    constants = method.encode(images(12, view.model).float().cuda())
    plan = MechanismPlan("example", 1.0, 6, 0.5, 1.0, 12.0, 1e-5, "rdp", mean_releases=1)
    recorded = []
    monkeypatch.setattr(shard.Replay, "_record", _noted(shard.Replay._record, recorded))

    def train() -> dict[str, torch.Tensor]:
        return train_shard(
            method,
            constants,
            labels_B=torch.arange(12, device="cuda") % NUM_CLASSES,
            unit_of_row=[f"{row:03d}" for row in range(12)],
            plan=plan,
            params=TrainingParams(lr=0.1, momentum=0.9),
            root_key=insecure_key(0, shard=0, attempt=0),
            max_rows=max_rows,
            compiled=True,
        ).tensors

    found = train()
    assert recorded == [None]
    monkeypatch.setattr(shard, "_same_batch", lambda *given: False)
    for name, value in train().items():
        assert torch.equal(value, found[name]), name


def _noted(function, calls: list):
    def noted(self):
        calls.append(None)
        return function(self)

    return noted
