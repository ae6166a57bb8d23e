"""Training components in phases: the same steps whether it was interrupted or not.

Letters: B batch, M rows, 3HW an image, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privshard.core.errors import InputError, VerificationError
from privshard.decomposition.batches import Batches
from privshard.decomposition.checkpoints import load_checkpoint, save_checkpoint
from privshard.decomposition.files import Decomposition, open_decomposition, write_decomposition
from privshard.decomposition.loss import distillation_loss
from privshard.decomposition.phases import Phase
from privshard.decomposition.regional import compiled_blocks
from privshard.decomposition.stacks import is_head
from privshard.decomposition.tied import TiedModel

Teacher = Callable[[Tensor], Tensor]
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Optimization:
    """How every phase is trained: AdamW, linear warm-up, then a cosine to zero. steps: of each phase.

    distill_weight, temperature: of the teacher's part of the loss. checkpoint_every: steps between checkpoints.
    """

    steps: Sequence[int]
    lr: float = 1e-3
    warmup: float = 0.2
    weight_decay: float = 0.05
    clip: float = 1.0
    distill_weight: float = 1.0
    temperature: float = 1.0
    checkpoint_every: int = 500

    def rate(self, step: int, total: int) -> float:
        """The learning rate of step 0, 1, … of a phase."""
        warm = max(1, round(self.warmup * total))
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


@dataclass(frozen=True)
class PhaseResult:
    """How one phase ended. accuracy: on the rows held out, None where there are none; loss: mean of the last tenth."""

    components: int
    steps: int
    loss: float
    accuracy: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return dict(vars(self))


def train_phases(
    start: Decomposition,
    phases: Sequence[Phase],
    batches: Batches,
    *,
    optimization: Optimization,
    teacher: Teacher | None,
    folder: Path,
    identity: str,
    device: str,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    on_step: OnStep = lambda stage, done, total: None,
) -> tuple[Decomposition, list[PhaseResult]]:
    """Train one phase after the other; what `folder` holds of an earlier run with this `identity` is not done again.

    start: one component at its random start, with plain parts. Later components start at zero, so a phase begins with
    the very model that the last one ended with. Only the phase's own components train, and the plain parts where the
    phase says so. Batches and augmentation are functions of seed, phase and step, so that, on one machine and CPU, an
    interrupted training ends with the bits of an uninterrupted one. compiled: blocks train compiled, see
    `compiled_blocks`; the same up to rounding.

    Raises VerificationError for files of another training, or damaged ones.

    Test: tests/decomposition/test_training.py.
    """
    results: list[PhaseResult] = []
    plain: list[Mapping[str, np.ndarray]] = []
    now = start
    for phase in phases:
        path = folder / "phases" / f"{phase.index + 1:02d}.safetensors"
        if path.exists():
            now, result = _finished(path, identity)
        else:
            run = _PhaseRun(_grown(now, phase), phase, batches, optimization, teacher, device, dtype, compiled)
            now, result = run.train(folder / "checkpoint.safetensors", identity=identity, on_step=on_step)
            facts = {"identity": identity, "phase": result.to_json()}
            write_decomposition(path, replace(now, facts=facts))
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        plain.append(now.plain[0])
        results.append(result)
    counts = tuple(phase.last for phase in phases)
    return replace(now, counts=counts, plain=tuple(plain), facts=start.facts), results


class _PhaseRun:
    """One phase: its model, its optimizer and where it stands."""

    def __init__(
        self,
        start: Decomposition,
        phase: Phase,
        batches: Batches,
        optimization: Optimization,
        teacher: Teacher | None,
        device: str,
        dtype: torch.dtype,
        compiled: bool,
    ) -> None:
        self.phase, self.batches, self.how, self.teacher = phase, batches, optimization, teacher
        self.device, self.dtype, self.compiled = device, dtype, compiled
        self.steps = optimization.steps[phase.index]
        self.model = TiedModel(start, frozen=phase.first).to(device)
        for name, parameter in self.model.skeleton.named_parameters():
            parameter.requires_grad_(phase.head if is_head(name) else phase.embeddings)
        self.moving = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = adamw(self.moving, optimization.weight_decay)

    def train(self, checkpoint: Path, *, identity: str, on_step: OnStep) -> tuple[Decomposition, PhaseResult]:
        """All steps that are still to do."""
        done, losses = self._resume(checkpoint, identity)
        self.model.train()
        tail = max(1, self.steps // 10)
        stage = f"components {self.phase.first + 1} to {self.phase.last}"
        with compiled_blocks(self.model) if self.compiled else nullcontext():
            for step in range(done, self.steps):
                loss = self._step(step)
                if step >= self.steps - tail:
                    losses += loss.item()
                    if not math.isfinite(losses):
                        raise InputError(
                            f"training: expected a finite loss, got {losses} in phase {self.phase.index + 1}.",
                            remedy="Lower training.lr, or raise training.warmup.",
                        )
                if (step + 1) % self.how.checkpoint_every == 0 and step + 1 < self.steps:
                    self._save(checkpoint, identity=identity, done=step + 1, losses=losses)
                on_step(stage, step + 1, self.steps)
        accuracy = self.accuracy()
        return self.model.to_decomposition(), PhaseResult(self.phase.last, self.steps, losses / tail, accuracy)

    def accuracy(self) -> float | None:
        """On the held-out rows."""
        self.model.eval()
        right = total = 0
        with torch.no_grad():
            weights = self.model.block_weights()
            for images_B, labels_B in self.batches.held_out():
                right += int((self.model(images_B, weights).argmax(dim=1) == labels_B).sum())
                total += len(labels_B)
        return right / total if total else None

    def _step(self, step: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.how.rate(step, self.steps)
        images_B, labels_B = self.batches.train(self.phase.index, step)
        with torch.autocast(self.device.split(":")[0], self.dtype, enabled=self.dtype != torch.float32):
            with torch.no_grad():
                teacher_BC = None if self.teacher is None else self.teacher(images_B)
            logits_BC = self.model(images_B)
        loss = distillation_loss(
            logits_BC, labels_B, teacher_BC, weight=self.how.distill_weight, temperature=self.how.temperature
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.moving.values()), self.how.clip)
        self.optimizer.step()
        return loss.detach()

    def _save(self, path: Path, *, identity: str, done: int, losses: float) -> None:
        arrays = {f"value.{name}": p.detach().cpu().numpy() for name, p in self.moving.items()}
        for moment in ("exp_avg", "exp_avg_sq"):
            arrays |= {
                f"{moment}.{name}": self.optimizer.state[p][moment].cpu().numpy() for name, p in self.moving.items()
            }
        position = {"identity": identity, "phase": self.phase.index, "done": done, "losses": losses.hex()}
        save_checkpoint(path, arrays, position)

    def _resume(self, path: Path, identity: str) -> tuple[int, float]:
        """Steps that are done, and the losses summed so far."""
        found = load_checkpoint(path)
        if found is None or found[1]["phase"] != self.phase.index:
            return 0, 0.0
        arrays, position = found
        _check_identity(path, str(position["identity"]), identity)
        done = int(position["done"])
        fused = bool(self.optimizer.defaults["fused"])  # keeps even the number of steps on the device
        with torch.no_grad():
            for name, parameter in self.moving.items():
                parameter.copy_(torch.from_numpy(arrays[f"value.{name}"]))
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(done), device=parameter.device if fused else "cpu"),
                    **{
                        moment: torch.from_numpy(arrays[f"{moment}.{name}"]).to(parameter.device)
                        for moment in ("exp_avg", "exp_avg_sq")
                    },
                }
        return done, float.fromhex(str(position["losses"]))


def adamw(parameters: Mapping[str, Tensor], weight_decay: float) -> torch.optim.AdamW:
    """AdamW of named parameters, in one kernel a group where all are on a GPU. Set its rate before every step."""
    on_gpu = bool(parameters) and all(parameter.is_cuda for parameter in parameters.values())
    return torch.optim.AdamW(parameter_groups(parameters, weight_decay), fused=True if on_gpu else None)


def parameter_groups(parameters: Mapping[str, Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases, tokens and positions don't. A component's first axis counts components."""
    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, parameter in parameters.items():
        axes = parameter.ndim - name.startswith("components.")
        groups[axes > 1 and not name.endswith(("pos_embed", "cls_token", "reg_token"))].append(parameter)
    return [{"params": groups[1], "weight_decay": weight_decay}, {"params": groups[0], "weight_decay": 0.0}]


def _grown(now: Decomposition, phase: Phase) -> Decomposition:
    """The decomposition with room for the phase's components: what isn't there yet is zero."""

    def grow(stack_K: np.ndarray) -> np.ndarray:
        new = np.zeros((phase.last - len(stack_K), *stack_K.shape[1:]), dtype=np.float32)
        return np.concatenate([stack_K, new])

    components = {
        prefix: {name: grow(stack_K) for name, stack_K in named.items()} for prefix, named in now.components.items()
    }
    return replace(now, components=components, counts=(phase.last,))


def _finished(path: Path, identity: str) -> tuple[Decomposition, PhaseResult]:
    """What a phase ended with, in an earlier run."""
    try:
        with open_decomposition(path, check=True) as found:
            held = replace(
                found,
                components={
                    prefix: {name: np.array(array) for name, array in named.items()}
                    for prefix, named in found.components.items()
                },
                plain=tuple({name: np.array(array) for name, array in plain.items()} for plain in found.plain),
            )
    except InputError as error:
        raise VerificationError(error.message, remedy="Delete the file; its phase is then trained again.") from error
    _check_identity(path, str(held.facts.get("identity")), identity)
    return held, PhaseResult(**held.facts["phase"])


def _check_identity(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise VerificationError(
            f"{path} belongs to another training ({found[:12]}… instead of {expected[:12]}…).",
            remedy="Use another workspace, or delete the file.",
        )
