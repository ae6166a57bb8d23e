"""Planted bugs: every one of them must make an audit, or the inspection of a whole training, complain.

Each mutation replaces a piece of the production code by one with a known privacy bug. The same detector is silent on
the code as it is (the tests named `…_as_it_is`), so a complaint is about the bug.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from privshard.api import constants, training, worker
from privshard.core.model import Composition
from privshard.data.shards import read_partition
from privshard.privacy.optimizer import PrivateOptimizer
from privshard.privacy.sampling import PoissonSampler
from privshard.store.layout import shard_dir
from privshard.store.objects import ObjectStore
from privshard.training import shard, step

Patch = pytest.MonkeyPatch


def halved_noise(patch: Patch) -> None:
    real = PrivateOptimizer.add_noise

    def add_noise(self: PrivateOptimizer) -> None:
        plan = self.plan
        self.plan = replace(plan, noise_multiplier=plan.noise_multiplier / 2)
        real(self)
        self.plan = plan

    patch.setattr(PrivateOptimizer, "add_noise", add_noise)


def mean_instead_of_sum(patch: Patch) -> None:
    real = step.clipped_sum

    def clipped_sum(*args: Any, taken: np.ndarray, **options: Any) -> Any:
        sums = real(*args, taken=taken, **options)
        return sums and {name: total / len(taken) for name, total in sums.items()}

    patch.setattr(shard, "clipped_sum", clipped_sum)


def no_clipping(patch: Patch) -> None:
    patch.setattr(step, "clip_factors", lambda squared_U, *, max_grad_norm: torch.ones_like(squared_U))


def clipping_by_the_batch(patch: Patch) -> None:
    def clip_factors(squared_U: torch.Tensor, *, max_grad_norm: float) -> torch.Tensor:
        return torch.full_like(squared_U, min(1.0, max_grad_norm / float(squared_U.mean().sqrt())))

    patch.setattr(step, "clip_factors", clip_factors)


def stale_norms(patch: Patch) -> None:
    real, first = step.clip_factors, {}

    def clip_factors(squared_U: torch.Tensor, *, max_grad_norm: float) -> torch.Tensor:
        return first.setdefault(len(squared_U), real(squared_U, max_grad_norm=max_grad_norm))

    patch.setattr(step, "clip_factors", clip_factors)


def normaliser_of_private_rows(patch: Patch) -> None:
    real_sum, real_scale, units_seen = step.clipped_sum, PrivateOptimizer.scale_grad, [0]

    def clipped_sum(*args: Any, units: Any, **options: Any) -> Any:
        units_seen[0] = len(units)
        return real_sum(*args, units=units, **options)

    def scale_grad(self: PrivateOptimizer) -> None:
        real_scale(self)
        for parameter in self.params:
            parameter.grad *= self.plan.expected_units / max(1.0, self.plan.sample_rate * units_seen[0])

    patch.setattr(shard, "clipped_sum", clipped_sum)
    patch.setattr(PrivateOptimizer, "scale_grad", scale_grad)


def shuffling(patch: Patch) -> None:
    """Every unit once in every epoch of 1 / rate steps: the rate is right, the draws are not independent."""

    def included(self: PoissonSampler, unit_ids: Any, *, first_step: int = 0, num_steps: int | None = None) -> Any:
        last = self.steps if num_steps is None else first_step + num_steps
        epoch = round(1 / self.sample_rate)
        order = np.random.default_rng(0).permutation(len(unit_ids))
        return np.stack([order % epoch == at % epoch for at in range(first_step, last)], axis=1)

    patch.setattr(PoissonSampler, "included", included)


def wrong_rate(patch: Patch) -> None:
    real = PoissonSampler.__init__

    def init(self: PoissonSampler, key: bytes, *, sample_rate: float, steps: int) -> None:
        real(self, key, sample_rate=min(1.0, 1.2 * sample_rate), steps=steps)

    patch.setattr(PoissonSampler, "__init__", init)


def dropped_empty_batch(patch: Patch) -> None:
    """The step is counted, so the accountant notices nothing, but nothing is released."""
    real = PrivateOptimizer.release

    def release(self: PrivateOptimizer, sums: Any) -> None:
        if sums is not None:
            return real(self, sums)
        assert self.step_hook is not None
        self.step_hook(self)
        self._steps += 1

    patch.setattr(PrivateOptimizer, "release", release)


def dropped_empty_batch_uncounted(patch: Patch) -> None:
    real = PrivateOptimizer.release
    patch.setattr(PrivateOptimizer, "release", lambda self, sums: None if sums is None else real(self, sums))


def noise_reused_everywhere(patch: Patch) -> None:
    patch.setattr(worker, "fresh_key", lambda: bytes(32))


def noise_reused_in_every_step(patch: Patch) -> None:
    real = PrivateOptimizer.add_noise

    def add_noise(self: PrivateOptimizer) -> None:
        self._stream.position = 0
        real(self)

    patch.setattr(PrivateOptimizer, "add_noise", add_noise)


STEP_MUTATIONS: list[tuple[Callable[[Patch], None], dict[str, Any], str]] = [
    (halved_noise, {}, "contradicted"),
    (mean_instead_of_sum, {}, "clipping"),
    (no_clipping, {}, "contradicted"),
    (clipping_by_the_batch, {"rate": 0.5, "steps": 8}, "clipping"),
    (stale_norms, {}, "contradicted"),
    (normaliser_of_private_rows, {}, "empty shard"),
    (shuffling, {"rate": 0.25, "steps": 16}, "Poisson sampling"),
    (wrong_rate, {"rate": 0.25, "steps": 16}, "sampling rate"),
    (dropped_empty_batch, {}, "empty shard"),
    (dropped_empty_batch_uncounted, {}, "VerificationError"),
    (noise_reused_everywhere, {}, "independent noise"),
    (noise_reused_in_every_step, {}, "noise"),
]


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_the_step_audit_is_silent_about_the_code_as_it_is(audit_complaints, rate):
    assert audit_complaints(rate=rate, steps=16 if rate < 1 else 4) == set()


@pytest.mark.parametrize(
    ("mutate", "options", "complaint"), STEP_MUTATIONS, ids=[mutate.__name__ for mutate, _, _ in STEP_MUTATIONS]
)
def test_the_step_audit_catches(audit_complaints, monkeypatch, mutate, options, complaint):
    mutate(monkeypatch)
    assert complaint in audit_complaints(**options)


def test_the_removal_audit_is_silent_about_the_code_as_it_is(audit_complaints):
    assert audit_complaints(removal=True) == set()


def test_the_removal_audit_catches_noise_that_is_used_again(audit_complaints, monkeypatch):
    noise_reused_everywhere(monkeypatch)
    assert "contradicted" in audit_complaints(removal=True, canaries=20_000)


def skipped_empty_shard(patch: Patch) -> None:
    real = training.train_shards

    def train_shards(workspace: Any, setup: Any, *, shards: Any, **options: Any) -> Any:
        held = [number for number in shards if len(read_partition(workspace.objects, shard_dir(number)))]
        return real(workspace, setup, shards=held, **options)

    patch.setattr(training, "train_shards", train_shards)


def empty_shard_without_noise(patch: Patch) -> None:
    real = worker.train_shard

    def train_shard(method: Any, rows: Any, **options: Any) -> Any:
        trained = real(method, rows, **options)
        if rows is None:
            trained = replace(trained, tensors={name: 0 * tensor for name, tensor in trained.tensors.items()})
        return trained

    patch.setattr(worker, "train_shard", train_shard)


def weights_by_shard_size(patch: Patch, root: str) -> None:
    def uniform(base: str, components: Any, **options: Any) -> Composition:
        sizes = [1 + len(read_partition(ObjectStore(root), shard_dir(number))) for number in range(len(components))]
        weights = {name: size / sum(sizes) for name, size in zip(components, sizes, strict=True)}
        return Composition(base, weights, **options)

    patch.setattr(training.Composition, "uniform", staticmethod(uniform))


def classes_of_private_rows(patch: Patch) -> None:
    patch.setattr(constants, "classes_of", lambda recipe, labels: tuple(sorted(labels())))


def nominal_number_of_private_rows(patch: Patch) -> None:
    patch.setattr(constants, "nominal_units", lambda recipe: sum(1 for _ in constants.source_rows(recipe)))


def test_the_inspection_of_a_training_is_silent_about_the_code_as_it_is(training_complaints):
    assert training_complaints() == set()


@pytest.mark.parametrize(
    ("mutate", "complaint"),
    [
        (skipped_empty_shard, "components"),
        (empty_shard_without_noise, "no noise"),
        (noise_reused_everywhere, "shared noise"),
        (weights_by_shard_size, "weights"),
        (classes_of_private_rows, "classes"),
        (nominal_number_of_private_rows, "normaliser"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_inspection_of_a_training_catches(training_complaints, monkeypatch, tmp_path, mutate, complaint):
    mutate(monkeypatch, *([str(tmp_path / "workspace")] if mutate is weights_by_shard_size else []))
    assert complaint in training_complaints()
