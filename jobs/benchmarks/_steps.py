"""One training step, by this engine and by its peers: what `private_step` and `end_to_end` time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from jobs.benchmarks._models import NUM_CLASSES, precision, random_images
from privshard.core.method import Constants, LinearMethod, initial
from privshard.core.privacy import MechanismPlan
from privshard.models.vit import ViTView
from privshard.privacy.optimizer import PrivateOptimizer
from privshard.privacy.stream import ChaChaStream
from privshard.tangent import linearize
from privshard.training.encoding import encode
from privshard.training.replay import Replay
from privshard.training.scaled import scaled
from privshard.training.step import clipped_sum
from privshard.training.units import Units

_HUGE = 1 << 30  # steps: a benchmark never runs out of its plan


def make_constants(method: LinearMethod, view: ViTView, num: int, *, device: str) -> Constants:
    """The cached constants of `num` random images, as training has them."""
    batch = min(num, 256)
    images = random_images(view, batch, device=device)
    batches = (images[: min(batch, num - start)] for start in range(0, num, batch))
    found = encode(method, batches, num_rows=num, batch_size=batch, device=device, dtype=precision(device))
    assert found is not None
    return found


class Step:
    """A step of one shard as `train_shard` takes it: clipped sum, noise, optimizer; the whole shard is the batch.

    recorded: whether sums are replayed where training replays them. What a recording holds, torch doesn't count as
    allocated while it is replayed: memory is measured without.
    """

    def __init__(
        self,
        method: LinearMethod,
        constants: Constants,
        *,
        device: str,
        private: bool,
        compiled: bool,
        num: int,
        recorded: bool = True,
    ) -> None:
        self.method = scaled(method, {"blocks.*": 0.5}) if private else method  # as private training has it
        self.constants, self.compiled, self.num = constants, compiled, num
        plan = MechanismPlan("example", 1.0, _HUGE, 1.0, 1.0 if private else 0.0, float(num), 1e-5, "rdp")
        self.plan, self.dtype = plan, precision(device)
        start = initial(method, device=device)
        self.parameters = {name: nn.Parameter(tensor) for name, tensor in start.items()}
        self.optimizer = PrivateOptimizer(
            torch.optim.SGD(self.parameters.values(), lr=1e-3, momentum=0.9),
            named_parameters=self.parameters,
            plan=plan,
            stream=ChaChaStream(os.urandom(32), purpose="noise"),
        )
        self.labels_B = torch.arange(num, device=device) % NUM_CLASSES
        self.units, self.taken = Units.of([f"{row:09d}" for row in range(num)]), np.arange(num)
        recorded = recorded and compiled and private and device.startswith("cuda")
        self._summed = Replay(self._sums) if recorded else self._sums

    def sums(self) -> dict[str, Tensor]:
        """The clipped sum alone, without noise or a step."""
        found = self._summed()
        assert found is not None
        return found

    def _sums(self) -> dict[str, Tensor] | None:
        return clipped_sum(
            self.method,
            self.constants,
            {name: parameter.data for name, parameter in self.parameters.items()},
            labels_B=self.labels_B,
            units=self.units,
            taken=self.taken,
            loss="cross_entropy",
            max_grad_norm=self.plan.max_grad_norm if self.plan.private else None,
            max_rows=self.num,
            dtype=self.dtype,
            compile=self.compiled,
        )

    def __call__(self) -> None:
        self.optimizer.release(self.sums())


def peer(model: nn.Module, x_B: Tensor, labels_B: Tensor, *, mode: str | None, device: str) -> Callable[[], None]:
    """A step of what is trainable in `model` on the given inputs: under Opacus ("hooks", "ghost"), or without privacy
    (None), in autocast to bf16 on a GPU."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
    criterion: nn.Module = nn.CrossEntropyLoss()
    if mode is not None:
        loader = DataLoader(TensorDataset(x_B[:2].cpu(), labels_B[:2].cpu()), batch_size=2)
        model, optimizer, *rest = PrivacyEngine().make_private(  # pyright: ignore
            module=model.train(),
            optimizer=optimizer,
            criterion=criterion,
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
            grad_sample_mode=mode,
        )
        criterion = rest[0] if mode == "ghost" else criterion  # pyright: ignore[reportAssignmentType]

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device):
            loss = criterion(model(x_B), labels_B)
        loss.backward()
        optimizer.step()

    return step


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """bf16 on a GPU, nothing on a CPU."""
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=device.startswith("cuda")):
        yield


class Tail(nn.Module):
    """The last blocks and the head of a vision transformer on cached tokens, or the whole on images; only those
    blocks train."""

    def __init__(self, model: nn.Module, *, first_block: int, cached: bool) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.model, self.first, self.cached = model, first_block, cached
        for part in (*model.blocks[first_block:], model.norm, model.head):  # pyright: ignore
            part.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        if not self.cached:
            return model(x)
        for block in model.blocks[self.first :]:  # pyright: ignore
            x = block(x)  # pyright: ignore[reportCallIssue]
        return model.forward_head(model.norm(x))  # pyright: ignore


class LinearTail(nn.Module):
    """A linearized model on cached tokens, trainable by any optimizer."""

    def __init__(self, model: nn.Module, *, blocks: int) -> None:
        super().__init__()
        self.lin = linearize(model, blocks=blocks)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return self.lin.from_tokens(tokens_BND)
