"""Training of one shard: the same function wherever it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from privshard.core.jobs import TrainingParams
from privshard.core.method import Constants, Method, initial, learnt
from privshard.core.privacy import MechanismPlan
from privshard.privacy.optimizer import PrivateOptimizer
from privshard.privacy.sampling import PoissonSampler
from privshard.privacy.stream import ChaChaStream, derive_key
from privshard.training.exact import train_exact
from privshard.training.gather import download, take
from privshard.training.replay import Replay
from privshard.training.scaled import scaled, unscaled
from privshard.training.step import clipped_sum
from privshard.training.units import Units

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Trained:
    """A shard's displacement (fp32, on the CPU) and how long it took to learn. The time is confidential.

    parameters: what was trained, beyond what the displacement holds under the same name: nothing for methods that
    train the displacement itself. It is part of the same release. curvature: of the objective at an exact optimum,
    where params.curvature_rank asks for it; never under differential privacy.
    """

    tensors: dict[str, Tensor]
    train_s: float
    parameters: dict[str, Tensor]
    curvature: dict[str, Tensor] = field(default_factory=dict)


def train_shard(
    method: Method,
    constants: Constants | None,
    *,
    labels_B: Tensor,
    unit_of_row: Sequence[str],
    plan: MechanismPlan,
    params: TrainingParams,
    root_key: bytes,
    copies: int = 1,
    max_rows: int = 512,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    on_step: OnStep = lambda done, total: None,
) -> Trained:
    """Learn one displacement under `plan`, from zero or from the method's own public start.

    Where the plan has one, the noisy mean of the units' features comes first and centres the head's input. Then per
    step: Poisson-sample units, sum their clipped gradients, add the plan's noise, divide by the plan's expected
    number of units (without differential privacy: by that of the shard's own), step the optimizer. The component is
    the average of the last iterates. With params.optimizer "exact", and without privacy, it is the optimum instead
    (`privshard.training.exact`). An empty batch is a step, and an empty shard (constants None) trains on pure
    noise: that it is empty stays private.

    Guaranteed: (epsilon, delta) of `plan` for everything in the returned tensors, as the accountant composed it; the
    optimizer refuses to run anything but the plan. Given `root_key`, the result is a function of the shard's rows in
    canonical order, the plan, the thread count, `max_rows` and `dtype`: bit for bit.

    Augmentations: an example may be `copies` consecutive rows, the fixed transforms of one image. Its gradient is then
    their mean, taken before clipping: all copies are of one unit, so a unit changes a sum by at most C however many
    there are. As computed: sum_u clip(sum_j g_uj, m C) / m = sum_u clip(mean_j g_uj, C), for m copies j of the
    examples of u. Clipping copy by copy would let a unit change the sum by m C (tests/training/test_copies.py).

    constants: on the device of `labels_B`, which computes, or on the CPU: then every batch is moved (`gather.take`).
    labels_B: class indices, in the rows' order. unit_of_row: example id or subject of each row. root_key: 32 bytes,
    fresh and never stored in production; sampling and noise keys are derived from it separately.
    """
    started = time.perf_counter()
    method = scaled(method, params.layer_scales)
    if params.optimizer == "exact":
        found = train_exact(
            method,
            constants,
            labels_B=labels_B,
            plan=plan,
            params=params,
            max_rows=max_rows,
            on_step=lambda done: on_step(done, plan.steps),
        )
        return Trained(found.tensors, time.perf_counter() - started, {}, found.curvature)
    units = Units.of(unit_of_row)
    if not plan.private:  # no other shard's rows enter, not even by their number
        plan = replace(plan, expected_units=plan.sample_rate * max(1, len(units)))
    parameters = {
        name: torch.nn.Parameter(tensor.clone()) for name, tensor in initial(method, device=labels_B.device).items()
    }
    optimizer = PrivateOptimizer(
        _optimizer(params, list(parameters.values())),
        named_parameters=parameters,
        plan=plan,
        stream=ChaChaStream(derive_key(root_key, "noise"), purpose="noise"),
    )
    sampler = PoissonSampler(derive_key(root_key, "sampling"), sample_rate=plan.sample_rate, steps=plan.steps)
    center_D = None
    if plan.mean_releases and method.radius is not None:
        feature_UD = _unit_features(method, constants, units, max_rows, labels_B.device)
        center_D = optimizer.release_mean(feature_UD, radius=method.radius)
        method = method.centered(center_D)
    sums = _Sums(
        method,
        constants,
        parameters,
        labels_B=labels_B,
        units=units,
        plan=plan,
        loss=params.loss,
        copies=copies,
        max_rows=max_rows,
        dtype=dtype,
        compiled=compiled,
    )
    tail = _TailMean(parameters, first=min(int(params.average_from * plan.steps), plan.steps - 1))
    for step, taken in enumerate(sampler.batches(units.ids)):
        optimizer.release(sums.of(taken))
        tail.add(step)
        on_step(step + 1, plan.steps)
    optimizer.check_complete()
    tensors, own = _in_base(method, tail.value(), center_D)
    return Trained(tensors, time.perf_counter() - started, own)


class _Sums:
    """What a shard's rows contribute to a step, before noise: the clipped sum over the units that it takes."""

    def __init__(
        self,
        method: Method,
        constants: Constants | None,
        parameters: Mapping[str, torch.nn.Parameter],
        *,
        labels_B: Tensor,
        units: Units,
        plan: MechanismPlan,
        loss: str,
        copies: int,
        max_rows: int,
        dtype: torch.dtype,
        compiled: bool,
    ) -> None:
        self._units, self._copies = units, copies
        self._parameters = parameters
        self._sum: partial[dict[str, Tensor] | None] | None = None
        if constants is not None:
            self._sum = partial(
                clipped_sum,
                method,
                constants,
                labels_B=labels_B,
                units=units,
                loss=loss,
                max_grad_norm=copies * plan.max_grad_norm if plan.private else None,
                max_rows=max_rows,
                dtype=dtype,
                compile=compiled,
            )
        everyone = np.arange(len(units))
        same = compiled and _same_batch(plan, constants, units, labels_B)
        self._replay = Replay(partial(self._plain, everyone)) if same else None

    def of(self, taken: np.ndarray) -> dict[str, Tensor] | None:
        """sum_u clip(mean over the copies of u's examples); None of no unit, and of an empty shard."""
        replay = self._replay if len(taken) == len(self._units) else None
        sums = self._plain(taken) if replay is None else replay()
        if sums is None or self._copies == 1:
            return sums
        return {name: total / self._copies for name, total in sums.items()}

    def _plain(self, taken: np.ndarray) -> dict[str, Tensor] | None:
        """The sum over all copies, each unit's clipped at that many times the norm."""
        if self._sum is None:
            return None
        return self._sum({name: parameter.data for name, parameter in self._parameters.items()}, taken=taken)


def _in_base(
    method: Method, trained: dict[str, Tensor], center_D: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was trained as the base's displacement, on the CPU; and those of the method's own parameters beside it."""
    trained = unscaled(method, trained)
    if center_D is not None:
        trained = method.uncentered(trained, center_D)
    tensors = download(learnt(method, trained))
    return tensors, download({name: tensor for name, tensor in trained.items() if name not in tensors})


def _unit_features(
    method: Method, constants: Constants | None, units: Units, max_rows: int, device: torch.device
) -> Tensor:
    """For each unit the mean feature of its examples, (U, D) in double precision, on `device`."""
    if constants is None:
        return torch.zeros(0, method.shapes()["head.weight"][1])
    num = len(next(iter(constants.values())))
    parts = [
        method.features(take(constants, np.arange(start, min(start + max_rows, num)), device=device))
        for start in range(0, num, max_rows)
    ]
    feature_BD = torch.cat(parts).double()[torch.from_numpy(units.rows).to(device)]
    return torch.segment_reduce(feature_BD, "mean", lengths=torch.from_numpy(units.sizes).to(device))


def _same_batch(plan: MechanismPlan, constants: Constants | None, units: Units, labels_B: Tensor) -> bool:
    """Whether every step takes all rows as they lie in a GPU's memory, each of them a unit, under differential privacy:
    then a step is the same work on the same memory, and nothing of it waits for the device."""
    if constants is None or not (plan.private and plan.sample_rate == 1.0 and labels_B.is_cuda):
        return False
    here = all(tensor.device == labels_B.device for tensor in constants.values())
    return here and len(units) == len(labels_B) and bool((units.rows == np.arange(len(labels_B))).all())


def _optimizer(params: TrainingParams, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if params.optimizer == "adam":
        betas = (params.momentum or 0.9, 0.999)
        return torch.optim.AdamW(parameters, lr=params.lr, betas=betas, weight_decay=params.weight_decay)
    return torch.optim.SGD(parameters, lr=params.lr, momentum=params.momentum, weight_decay=params.weight_decay)


class _TailMean:
    """The mean of the iterates from step `first` on, accumulated in double precision."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], *, first: int) -> None:
        self._parameters = parameters
        self._first = first
        self._count = 0
        self._sums = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}

    def add(self, step: int) -> None:
        if step >= self._first:
            self._count += 1
            for name, parameter in self._parameters.items():
                self._sums[name] += parameter.data

    def value(self) -> dict[str, Tensor]:
        return {name: (total / self._count).float() for name, total in self._sums.items()}
