"""What one cell of the decomposition benchmark trains: components, plain models, teachers, downstream models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from privshard.core.digest import json_digest
from privshard.decomposition.basis import Basis
from privshard.decomposition.batches import Augmentation, Batches
from privshard.decomposition.files import Decomposition, open_decomposition, write_decomposition
from privshard.decomposition.loss import distillation_loss
from privshard.decomposition.measure import accuracy
from privshard.decomposition.phases import plan_phases
from privshard.decomposition.recompose import expanded
from privshard.decomposition.regional import compiled_blocks
from privshard.decomposition.start import random_start
from privshard.decomposition.tied import TiedModel
from privshard.decomposition.training import Optimization, Teacher, adamw, train_phases
from privshard.models.architecture import Architecture
from privshard.models.build import build_model

MEAN = STD = (0.5, 0.5, 0.5)
MODEL = "vit_tiny_patch16_224"
LONGER, SAME = "growing+warmup=4+steps=2", "warmup=4+steps=2"
"""Changes (`changed`) with which the headline claims are tried again: of phases, and the same of one training."""


@dataclass(frozen=True)
class Settings:
    """The scale of everything; part of every result, so that results of different scales never mix.

    added: components of the phases, which share `steps` (`steps_of`); every pretraining takes `steps` steps.
    """

    size: int = 32
    patch: int = 4
    width: int = 192
    heads: int = 3
    depth: int = 12
    added: tuple[int, ...] = (1, 1, 2, 4, 4)
    depths: tuple[int, ...] = (2, 4, 6, 8, 10, 12)
    steps: int = 2500
    batch: int = 512
    lr: float = 1e-3
    teacher_steps: int = 1500
    down_steps: int = 400
    down_batch: int = 128
    down_lr: float = 5e-4
    dtype: str = "bfloat16"
    growing: bool = False
    refined: bool = False
    warmup: float = 0.05

    def steps_of(self, added: Sequence[int]) -> list[int]:
        """Steps of each phase: equal, or (`growing`) in proportion to the components that there are at its end.

        refined: the phases have two thirds of all steps, and then all components train together.
        """
        counts = np.cumsum(added) if self.growing else np.ones(len(added))
        steps = self.steps * 2 // 3 if self.refined else self.steps
        return [int(steps * count / counts.sum()) for count in counts]

    @property
    def digest(self) -> str:
        """Digest of all of them."""
        later = {"growing": False, "refined": False, "warmup": 0.05}  # they change no result where they are as before
        return json_digest({name: value for name, value in asdict(self).items() if later.get(name) != value})[:12]


@dataclass(frozen=True)
class Cell:
    """One training and its accuracy. target: what a downstream model learns; empty for pretraining itself.

    start: for pretraining how the blocks learn, "…@CHANGE" with settings changed (`changed`); for downstream what they
    start from. components: the first so many.
    """

    data: str
    start: str
    depth: int
    components: int
    seed: int
    target: str = ""

    @property
    def name(self) -> str:
        """Its place in the results."""
        where = f"{self.data}>{self.target}" if self.target else self.data
        return f"{where}/{self.start}/depth{self.depth}/k{self.components}/seed{self.seed}"


@dataclass(frozen=True)
class Dataset:
    """8-bit images of one size with labels, in train and held-out rows."""

    images_M3HW: np.ndarray
    labels_M: np.ndarray
    train_rows: np.ndarray
    eval_rows: np.ndarray
    num_classes: int
    flip: bool


class Bench:
    """Trains cells, keeping what several of them need in `folder`; what isn't there is trained again."""

    def __init__(
        self, settings: Settings, folder: Path, *, dataset: Callable[[str], Dataset], device: str, compile_models: bool
    ) -> None:
        self.settings, self.folder, self.dataset, self.device = settings, folder, dataset, device
        self._compile = compile_models
        self._held: dict[str, nn.Module] = {}
        self._teachers: dict[str, Teacher] = {}

    def run(self, cell: Cell) -> dict[str, Any]:
        """The figures of a cell."""
        start, _, change = cell.start.partition("@")
        if change:  # the same cell with other settings
            other = Bench(
                changed(self.settings, change),
                self.folder / change,
                dataset=self.dataset,
                device=self.device,
                compile_models=self._compile,
            )
            other._teachers[cell.data] = self._teacher(cell.data)
            return other.run(replace(cell, start=start))
        if cell.target:
            return {"accuracy": self._downstream(cell)}
        if cell.start.startswith(("phased", "at_once", "t0t1")):
            accuracies = self._components(cell)[1]
            return {"accuracy": accuracies[-1][1], "by_components": [list(pair) for pair in accuracies]}
        if cell.start == "tied":
            return {"accuracy": self._tied(cell)}
        return {"accuracy": self._plain(cell)[1]}

    def _components(self, cell: Cell) -> tuple[Decomposition, list[tuple[int, float]]]:
        """A decomposition, and (components, accuracy) after each of its phases."""
        s, place = self.settings, self.folder / cell.name.replace("/", "_")
        path = place / "decomposition.safetensors"
        if path.exists():
            with open_decomposition(path, check=True) as found:
                kept = replace(
                    found, components=_copied(found.components), plain=[_copied_plain(p) for p in found.plain]
                )
            return kept, [(int(k), float(a)) for k, a in kept.facts["accuracies"]]
        added = s.added if cell.start.startswith("phased") else (cell.components,)
        phases = plan_phases(added, embeddings="every", head="every")
        data = self.dataset(cell.data)
        architecture = self._architecture(data.num_classes)
        first = self._build(1, data.num_classes, seed=cell.seed)
        start = random_start(_state(first), architecture, basis=_basis(cell.start))
        start = replace(start, stacks=tuple(replace(stack, depth=s.depth) for stack in start.stacks))
        found, results = train_phases(
            start,
            phases,
            self._batches(cell.data, seed=cell.seed, batch=s.batch),
            optimization=Optimization(steps=s.steps_of(added), lr=s.lr, warmup=s.warmup, checkpoint_every=10**9),
            teacher=self._teacher(cell.data),
            folder=place,
            identity=s.digest + cell.name,
            device=self.device,
            dtype=getattr(torch, s.dtype),
            compiled=self._compile,
        )
        accuracies = [(result.components, result.accuracy or 0.0) for result in results]
        if s.refined:
            model = TiedModel(found.first(cell.components, [s.depth]))
            left = s.steps - sum(s.steps_of(added))
            reached = self._train(model, cell.data, steps=left, seed=cell.seed, teacher=self._teacher(cell.data))
            found, accuracies = model.to_decomposition(), [*accuracies[:-1], (cell.components, reached)]
        found = replace(found, facts={"accuracies": accuracies})
        write_decomposition(path, found)
        return found, accuracies

    def _tied(self, cell: Cell) -> float:
        """The first components of the phased training, all of them trained for the steps that its later phases took."""
        s, counts = self.settings, np.cumsum(self.settings.added)
        source, _ = self._components(replace(cell, start="phased", components=int(counts[-1])))
        model = TiedModel(source.first(cell.components, [cell.depth]))
        left = sum(steps for steps, count in zip(s.steps_of(s.added), counts, strict=True) if count > cell.components)
        return self._train(model, cell.data, steps=left, seed=cell.seed, teacher=self._teacher(cell.data))

    def _plain(self, cell: Cell) -> tuple[nn.Module, float]:
        """A plain model: with the teacher ("plain", "distilled") or on labels alone ("scratch")."""
        s, path = self.settings, self.folder / f"{cell.name.replace('/', '_')}.safetensors"
        data = self.dataset(cell.data)
        model = self._build(cell.depth, data.num_classes, seed=cell.seed)
        if path.exists():
            model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
            return model, accuracy(
                model.to(self.device).eval(), self._batches(cell.data, seed=0, batch=s.batch).held_out()
            )
        teacher = None if cell.start == "scratch" else self._teacher(cell.data)
        found = self._train(model, cell.data, steps=s.steps, seed=cell.seed, teacher=teacher)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, path)
        return model, found

    def _downstream(self, cell: Cell) -> float:
        """A model started from something and trained on the target, all weights; accuracy on its held-out rows."""
        s, data = self.settings, self.dataset(cell.target)
        model: nn.Module
        if cell.start == "tied":
            source = self._components(self._source(cell, "phased"))[0].first(cell.components, [cell.depth])
            tied = TiedModel(source)
            tied.skeleton.head = self._build(cell.depth, data.num_classes, seed=cell.seed).get_submodule("head")
            model = tied
        else:
            model = self._build(cell.depth, data.num_classes, seed=cell.seed)
            given = self._start_weights(cell)
            own = model.state_dict()
            model.load_state_dict(own | {name: v for name, v in given.items() if not name.startswith("head.")})
        return self._train(model, cell.target, steps=s.down_steps, seed=cell.seed, teacher=None, downstream=True)

    def _start_weights(self, cell: Cell) -> dict[str, Tensor]:
        """What the blocks and embeddings of a downstream model start from; nothing for random ones."""
        if cell.start == "random":
            return {}
        if cell.start in ("free", "t0t1"):
            source, _ = self._components(self._source(cell, "phased" if cell.start == "free" else "t0t1"))
            state = expanded(source.first(cell.components, [cell.depth]))
            return {name: torch.from_numpy(array) for name, array in state.items()}
        if cell.start in ("scratch", "distilled"):
            return self._plain(replace(cell, target=""))[0].cpu().state_dict()
        full = self._plain(self._source(cell, "plain"))[0].cpu().state_dict()
        return every_other(full, self.settings.depth, cell.depth)

    def _source(self, cell: Cell, start: str) -> Cell:
        """The pretraining that a downstream cell builds on."""
        count = {"phased": sum(self.settings.added), "t0t1": 2, "plain": 0}[start]
        return Cell(cell.data, start, self.settings.depth, count, cell.seed)

    def _train(
        self, model: nn.Module, name: str, *, steps: int, seed: int, teacher: Teacher | None, downstream: bool = False
    ) -> float:
        """AdamW, warm-up and cosine; the accuracy afterwards."""
        s = self.settings
        batches = self._batches(name, seed=seed, batch=s.down_batch if downstream else s.batch)
        how = Optimization(steps=[steps], lr=s.down_lr if downstream else s.lr, warmup=s.warmup)
        model.to(self.device).train()
        optimizer = adamw(dict(model.named_parameters()), how.weight_decay)
        with compiled_blocks(model) if self._compile else nullcontext():
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = how.rate(step, steps)
                images_B, labels_B = batches.train(99, step)
                with self._autocast():
                    with torch.no_grad():
                        teacher_BC = None if teacher is None else teacher(images_B)
                    logits_BC = model(images_B)
                loss = distillation_loss(logits_BC, labels_B, teacher_BC, weight=1.0, temperature=1.0)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), how.clip)
                optimizer.step()
        return accuracy(model.eval(), batches.held_out())

    def _teacher(self, name: str) -> Teacher:
        """What to learn from, compiled where the blocks are: its batches in training all have one shape."""
        if name not in self._teachers:
            model = self._teacher_model(name)
            self._teachers[name] = torch.compile(model, dynamic=False) if self._compile else model
        return self._teachers[name]

    def _teacher_model(self, name: str) -> nn.Module:
        """A ResNet-18 for small images, trained once for each dataset, seed 0."""
        if name not in self._held:
            data, path = self.dataset(name), self.folder / f"teacher_{name}.safetensors"
            model = small_resnet(data.num_classes, seed=0)
            if path.exists():
                model.load_state_dict(load_file(path))
            else:
                self._train(model, name, steps=self.settings.teacher_steps, seed=0, teacher=None)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, path)
            self._held[name] = model.to(self.device).eval().requires_grad_(False)
        return self._held[name]

    def teacher_accuracy(self, name: str) -> float:
        """Of the teacher, on the held-out rows."""
        batches = self._batches(name, seed=0, batch=self.settings.batch)
        return accuracy(self._teacher_model(name), batches.held_out())

    def _batches(self, name: str, *, seed: int, batch: int) -> Batches:
        data = self.dataset(name)
        return Batches(
            data.images_M3HW,
            data.labels_M,
            train_rows=data.train_rows,
            eval_rows=data.eval_rows,
            batch_size=batch,
            mean=MEAN,
            std=STD,
            augmentation=Augmentation(crop=self.settings.size // 8, flip=data.flip),
            seed=seed,
            device=self.device,
        )

    def _architecture(self, num_classes: int) -> Architecture:
        s = self.settings
        args = {"img_size": s.size, "patch_size": s.patch, "embed_dim": s.width, "num_heads": s.heads}
        return Architecture(MODEL, args, num_classes)

    def _build(self, depth: int, num_classes: int, *, seed: int) -> nn.Module:
        return build_model(MODEL, {**self._architecture(2).args, "depth": depth}, num_classes=num_classes, seed=seed)

    def _autocast(self) -> torch.autocast:
        dtype = getattr(torch, self.settings.dtype)
        return torch.autocast(self.device.split(":")[0], dtype, enabled=dtype != torch.float32)


def changed(settings: Settings, change: str) -> Settings:
    """Settings with changes, joined by "+": "growing" phases, "refined" components, or "NAME=FACTOR" of a number.

    >>> changed(Settings(), "steps=2+growing").steps, changed(Settings(), "lr=0.5").lr
    (5000, 0.0005)
    """
    for each in change.split("+"):
        name, _, factor = each.partition("=")
        now = getattr(settings, name)
        settings = replace(settings, **{name: type(now)(now * float(factor)) if factor else True})
    return settings


def every_other(state: dict[str, Tensor], full: int, depth: int) -> dict[str, Tensor]:
    """The weights of `depth` layers of a model of `full`, evenly spaced, the first and the last among them.

    >>> [int(name.split(".")[1]) for name in every_other({f"blocks.{i}.x": i for i in range(12)}, 12, 4)]
    [0, 1, 2, 3]
    """
    kept = {round(place): index for index, place in enumerate(np.linspace(0, full - 1, depth))}
    found = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] != "blocks":
            found[name] = value
        elif int(parts[1]) in kept:
            found[".".join(["blocks", str(kept[int(parts[1])]), *parts[2:]])] = value
    return found


def small_resnet(num_classes: int, *, seed: int) -> nn.Module:
    """timm's ResNet-18 with a stem for images of 32 pixels: a 3x3 convolution, no pooling."""
    model: Any = build_model("resnet18", {}, num_classes=num_classes, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model.to(memory_format=torch.channels_last)


def _basis(start: str) -> Basis:
    """ "phased", or "phased:POLYNOMIAL:START:ARGUMENT"; t0t1 is T_0 and T_1."""
    _, *parts = start.split(":")
    return Basis(parts[0], int(parts[1]), parts[2]) if parts else Basis()  # pyright: ignore[reportArgumentType]


def _state(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}


def _copied(components: Any) -> dict[str, dict[str, np.ndarray]]:
    return {prefix: _copied_plain(named) for prefix, named in components.items()}


def _copied_plain(plain: Any) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in plain.items()}


def mean_of(values: Sequence[float]) -> float:
    """The plain average."""
    return sum(values) / len(values)
