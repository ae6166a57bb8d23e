"""What the notebook `opacus_comparison` says of Opacus as shipped, and of privshard in the same place."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule
from opacus.utils.uniform_sampler import DistributedUniformWithReplacementSampler
from torch.utils.data import DataLoader, TensorDataset

import privshard
from privshard.core.jobs import TrainingParams
from privshard.core.privacy import MechanismPlan
from privshard.privacy.clipping import clip_factors, zero_nonfinite
from privshard.privacy.optimizer import PrivateOptimizer
from privshard.privacy.sampling import PoissonSampler
from privshard.privacy.stream import fresh_key, insecure_key
from privshard.training.shard import train_shard

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def made_private(rows: int):
    model = torch.nn.Linear(4, 2)
    return PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.randn(rows, 4), torch.zeros(rows).long()), batch_size=10),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )


def tiny_vit() -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3, num_classes=3)


def test_opacus_rate_and_normaliser_change_with_one_row():
    (_, one, few), (_, other, more) = made_private(100), made_private(101)
    assert (one.expected_batch_size, other.expected_batch_size) == (10, 9)
    assert (len(few), len(more)) == (10, 11)


def test_privshard_rate_and_normaliser_do_not(monkeypatch):
    from privshard.audit.canary import CanaryMethod, canary_constants

    seen = []
    real = PrivateOptimizer.__init__

    def init(self, optimizer, **options):
        real(self, optimizer, **options)
        seen.append((self.expected_batch_size, self.plan))

    monkeypatch.setattr(PrivateOptimizer, "__init__", init)
    plan = MechanismPlan("example", 0.5, 2, 1.0, 1.0, 12.5, 1e-5, "rdp")
    for rows in (25, 26):
        train_shard(
            CanaryMethod(30, max_grad_norm=1.0),
            canary_constants(torch.arange(rows)),
            labels_B=torch.ones(rows, dtype=torch.long),
            unit_of_row=[f"{row:03d}" for row in range(rows)],
            plan=plan,
            params=TrainingParams(lr=1.0),
            root_key=insecure_key(0, shard=0, attempt=0),
        )
    assert seen == [(12.5, plan)] * 2


def test_opacus_moves_the_whole_model_off_the_fast_path_for_a_class_token(recwarn):
    slow = {}
    for frozen in (False, True):
        vit = tiny_vit()
        if frozen:
            vit.cls_token.requires_grad_(False)
            vit.pos_embed.requires_grad_(False)
        GradSampleModule(vit)
        slow[frozen] = [name for name, part in vit.named_modules() if hasattr(part, "ft_compute_sample_grad")]
    assert slow[False] == [""]
    assert slow[True]
    assert all("norm" in name for name in slow[True])
    assert not [warning for warning in recwarn if "functorch" in str(warning.message)]


def test_privshard_trains_no_class_token():
    trained = [
        name for name, part in privshard.linearize(tiny_vit(), blocks=1).named_parameters() if part.requires_grad
    ]
    assert trained
    assert not any("cls_token" in name or "pos_embed" in name for name in trained)


def test_opacus_lets_one_example_that_is_not_finite_into_every_weight():
    model, optimizer, _ = made_private(100)
    rows = torch.randn(10, 4)
    rows[3] = math.nan
    torch.nn.functional.cross_entropy(model(rows), torch.zeros(10).long()).backward()
    optimizer.step()
    assert torch.isnan(next(model.parameters())).all()


def test_privshard_gives_it_no_part_in_the_sum():
    gradients = torch.randn(4, 5)
    gradients[2, 1] = math.nan
    squares = gradients.square().sum(1)
    factors = clip_factors(squares, max_grad_norm=1.0)[:, None]
    total = (factors * zero_nonfinite(gradients, ~torch.isfinite(squares))).sum(0)
    kept = torch.tensor([0, 1, 3])
    torch.testing.assert_close(total, (factors[kept] * gradients[kept]).sum(0))


def test_opacus_drops_empty_batches_where_sampling_is_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    generator = torch.Generator().manual_seed(0)
    sampler = DistributedUniformWithReplacementSampler(total_size=20, sample_rate=0.02, steps=200, generator=generator)
    batches = list(sampler)
    assert len(batches) < 120
    assert all(len(batch) for batch in batches)


def test_privshard_takes_every_step():
    batches = list(PoissonSampler(fresh_key(), sample_rate=0.02, steps=200).batches([f"{row}" for row in range(20)]))
    assert len(batches) == 200
    assert sum(len(batch) == 0 for batch in batches) > 60
