"""Phased training: who trains when, and that interruptions leave no trace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_decompositions import VIT, state_of, vit

from privshard.core.errors import InputError, VerificationError
from privshard.decomposition import training
from privshard.decomposition.basis import Basis
from privshard.decomposition.batches import Augmentation, Batches
from privshard.decomposition.files import open_decomposition
from privshard.decomposition.phases import plan_phases
from privshard.decomposition.start import random_start
from privshard.decomposition.tied import TiedModel
from privshard.decomposition.training import Optimization, parameter_groups, train_phases


@pytest.fixture
def batches() -> Batches:
    return made_batches("cpu")


def made_batches(device: str) -> Batches:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 40)
    pixels = rng.integers(0, 80, (40, 3, 32, 32), dtype=np.uint8) + (labels * 35).astype(np.uint8)[:, None, None, None]
    return Batches(
        pixels,
        labels,
        train_rows=np.arange(32),
        eval_rows=np.arange(32, 40),
        batch_size=8,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        augmentation=Augmentation(crop=2, flip=True),
        seed=3,
        device=device,
    )


class Stopped(BaseException):
    pass


def run(folder, batches, *, added=(1, 2), embeddings="every", head="every", stop_at=None, device="cpu", **how):
    seen = []

    def on_step(stage, done, total):
        seen.append((stage, done))
        if len(seen) == stop_at:
            raise Stopped

    teacher, compiled = how.pop("teacher", None), how.pop("compiled", False)
    settings = {"steps": (6,) * len(added), "lr": 3e-3, "checkpoint_every": 2, **how}
    return train_phases(
        random_start(state_of(vit(4)), VIT, basis=Basis()),
        plan_phases(added, embeddings=embeddings, head=head),
        batches,
        optimization=Optimization(**settings),
        teacher=teacher,
        folder=folder,
        identity="me",
        device=device,
        compiled=compiled,
        on_step=on_step,
    ), seen


def same(one, other) -> bool:
    return all(np.array_equal(array, other.tensors()[name]) for name, array in one.tensors().items())


@pytest.mark.parametrize("stop_at", [1, 5, 6, 9])
def test_an_interrupted_training_ends_with_the_bits_of_an_uninterrupted_one(tmp_path, batches, stop_at):
    (whole, results), seen = run(tmp_path / "whole", batches)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", batches, stop_at=stop_at)
    (again, found), rest = run(tmp_path / "parts", batches)
    assert same(whole, again)
    assert found == results
    assert len(seen) == 12
    assert len(rest) == 12 - {1: 0, 5: 4, 6: 4, 9: 8}[stop_at]  # from the last checkpoint, every two steps
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()


def test_all_phases_compile_one_graph_and_train_the_same(tmp_path, batches, graphs):
    (eager, _), _ = run(tmp_path / "eager", batches, added=(1, 1, 2), steps=(2, 2, 2))
    assert not graphs
    (compiled, _), _ = run(tmp_path / "compiled", batches, added=(1, 1, 2), steps=(2, 2, 2), compiled=True)
    assert len(graphs) == 1  # of three phases with four blocks each; the held-out batches are evaluated without it
    for name, array in eager.tensors().items():
        np.testing.assert_allclose(compiled.tensors()[name], array, atol=1e-4, err_msg=name)


def test_a_fused_optimizer_resumes(tmp_path, batches, monkeypatch):
    monkeypatch.setattr(
        training, "adamw", lambda moving, decay: torch.optim.AdamW(parameter_groups(moving, decay), fused=True)
    )
    (whole, _), _ = run(tmp_path / "whole", batches)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", batches, stop_at=5)
    (again, _), _ = run(tmp_path / "parts", batches)
    assert same(whole, again)


@pytest.mark.gpu
def test_a_training_on_a_gpu_is_fused_and_resumes(tmp_path):
    moving = {"head.weight": torch.ones(3, 3, device="cuda", requires_grad=True)}
    assert training.adamw(moving, 0.1).defaults["fused"]
    on_gpu = made_batches("cuda")
    (whole, _), _ = run(tmp_path / "whole", on_gpu, device="cuda")
    with pytest.raises(Stopped):
        run(tmp_path / "parts", on_gpu, device="cuda", stop_at=5)
    (again, _), _ = run(tmp_path / "parts", on_gpu, device="cuda")
    for name, array in whole.tensors().items():
        np.testing.assert_allclose(again.tensors()[name], array, atol=1e-3, err_msg=name)


def test_only_the_new_components_train_and_each_phase_keeps_its_plain_parts(tmp_path, batches):
    (found, results), _ = run(tmp_path, batches, added=(1, 1, 2))
    assert found.counts == (1, 2, 4)
    assert [result.components for result in results] == [1, 2, 4]
    for phase, count in enumerate(found.counts):
        with open_decomposition(tmp_path / "phases" / f"{phase + 1:02d}.safetensors", check=True) as then:
            for name, stack in then.components["blocks"].items():
                assert np.array_equal(found.components["blocks"][name][:count], stack), (phase, name)
            assert all(np.array_equal(found.plain[phase][name], a) for name, a in then.plain[0].items())
    assert np.abs(found.components["blocks"]["attn.qkv.weight"][3]).max() > 0
    assert not np.array_equal(found.plain[0]["head.weight"], found.plain[2]["head.weight"])
    assert not np.array_equal(found.plain[0]["pos_embed"], found.plain[2]["pos_embed"])


def test_what_trains_in_the_first_phase_alone_stays_afterwards(tmp_path, batches):
    (found, _), _ = run(tmp_path, batches, embeddings="first", head="first")
    assert all(np.array_equal(array, found.plain[1][name]) for name, array in found.plain[0].items())
    (other, _), _ = run(tmp_path / "head", batches, embeddings="first", head="every")
    moved = {name for name, array in other.plain[0].items() if not np.array_equal(array, other.plain[1][name])}
    assert moved == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_a_phase_begins_with_the_model_that_the_last_one_ended_with(tmp_path, batches):
    (found, _), _ = run(tmp_path, batches, steps=(6, 1), lr=1e-30)
    first, second = (TiedModel(found.first(count, None)).eval() for count in found.counts)
    images, _ = next(batches.held_out())
    with torch.no_grad():
        torch.testing.assert_close(first(images), second(images), atol=1e-6, rtol=1e-5)


def test_it_learns(tmp_path, batches):
    (found, results), _ = run(tmp_path, batches, steps=(60, 30), lr=5e-3)
    assert results[0].loss < 1.2 < np.log(5)
    assert results[1].loss < results[0].loss
    assert found.num_components == 3


def test_accuracy_is_of_the_held_out_rows(tmp_path, batches):
    (found, results), _ = run(tmp_path, batches)
    model = TiedModel(found.first(None, None)).export()
    images, labels = next(batches.held_out())
    assert results[-1].accuracy == (model(images).argmax(dim=1) == labels).float().mean().item()


def test_a_teacher_changes_what_is_learnt(tmp_path, batches):
    (alone, _), _ = run(tmp_path / "a", batches)
    seen = []

    def teacher(images):
        seen.append(images.shape)
        return torch.zeros(len(images), 5)

    (taught, _), _ = run(tmp_path / "b", batches, teacher=teacher)
    assert seen == [(8, 3, 32, 32)] * 12
    assert not same(alone, taught)


def test_files_of_another_training_and_damaged_ones_are_refused(tmp_path, batches):
    with pytest.raises(Stopped):
        run(tmp_path, batches, stop_at=3)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(VerificationError, match=r"Expected a whole checkpoint .* got another digest"):
        run(tmp_path, batches)
    path.write_bytes(whole[:200])
    with pytest.raises(VerificationError, match="Expected a whole checkpoint"):
        run(tmp_path, batches)
    path.write_bytes(whole.replace(b'\\"me\\"', b'\\"yo\\"'))
    with pytest.raises(VerificationError, match="another"):
        run(tmp_path, batches)
    path.unlink()
    run(tmp_path, batches)
    phase = tmp_path / "phases" / "01.safetensors"
    data = bytearray(phase.read_bytes())
    data[-1] ^= 1
    phase.write_bytes(bytes(data))
    with pytest.raises(VerificationError, match="its header tells another digest"):
        run(tmp_path, batches)


def test_a_loss_that_is_not_finite_is_refused(tmp_path, batches):
    with pytest.raises(InputError, match="expected a finite loss, got"):
        run(tmp_path, batches, lr=1e30, clip=1e30)


def test_the_rate_warms_up_and_falls_to_zero():
    how = Optimization(steps=(100,), lr=1.0, warmup=0.1)
    rates = [how.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 1e-3
    assert replace(how, warmup=0).rate(0, 10) == 1.0


def test_phases_need_components():
    with pytest.raises(InputError, match=r"expected a number for each phase, 1 or more, got \[1, 0\]"):
        plan_phases([1, 0], embeddings="every", head="every")
