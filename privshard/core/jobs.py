"""What crosses to a worker and back: one shard's job, its result, and the protocol of whoever runs jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from privshard.core.execution import ExecutionFlags
from privshard.core.model import BaseSpec, Space
from privshard.core.privacy import MechanismPlan


@dataclass(frozen=True)
class TrainingParams:
    """Optimization of one shard; all public constants. Steps and rate live in the mechanism plan.

    average_from: the component is the mean of the iterates after this fraction of the steps, in [0, 1]; 1 keeps the
    last one. Averaging is post-processing, so it is free under differential privacy. augmentations: how many fixed,
    changed copies of each example are learnt from beside itself; its gradient is their mean. flips: whether some of the
    copies are mirrored. optimizer "exact": no steps at all but the optimum itself, with weight_decay as its ridge; only
    without differential privacy. layer_scales: shell pattern of parameter names -> how much further they move
    (`privshard.training.scaled`). curvature_rank: how many directions of the curvature at an exact optimum are kept
    beside it, for `compose: curvature`; 0 for none.
    """

    lr: float
    optimizer: Literal["sgd", "adam", "exact"] = "sgd"
    momentum: float = 0.0
    loss: Literal["cross_entropy", "square"] = "cross_entropy"
    average_from: float = 0.5
    weight_decay: float = 0.0
    augmentations: int = 0
    flips: bool = True
    layer_scales: Mapping[str, float] = field(default_factory=dict)
    curvature_rank: int = 0


@dataclass(frozen=True)
class MethodSpec:
    """A method by name, with its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardJob:
    """Everything that decides one shard's component; small enough to send anywhere.

    insecure_seed: None in production (fresh entropy, never stored). An integer makes randomness a function of
    (seed, shard, attempt), for tests; the component is then marked as not private.

    names: path -> name of the shard's objects where they lie under other names. That is all a worker gets to know of a
    workspace: its own shard's rows; no key, no address of the ledger, no other shard's names.
    """

    run_id: str
    workspace: str
    shard: int
    attempt: int
    base: BaseSpec
    base_digest: str
    classes: tuple[str, ...]
    method: MethodSpec
    training: TrainingParams
    plan: MechanismPlan
    flags: ExecutionFlags
    insecure_seed: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardResult:
    """What a worker sends back: the component's tensors, and confidential facts that stay in the workspace.

    parameters: what was trained, beyond what `tensors` hold, where those are a function of it. curvature: of the
    shard's objective at its optimum, where the job asks for it.
    """

    run_id: str
    shard: int
    attempt: int
    tensors: Mapping[str, np.ndarray]
    space: Space
    example_ids: tuple[str, ...]
    num_units: int
    timing_s: Mapping[str, float]
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    curvature: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """One line of news from a running job: done of total, in a stage."""

    run_id: str
    shard: int | None
    stage: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]


def counting(on_progress: OnProgress, stage: str, total: int) -> Callable[[int], None]:
    """A function that is told how many more of `total` are done, and tells `on_progress` how many are in all."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_progress(Progress(stage, None, stage, done, total))

    return count


@dataclass(frozen=True)
class ShardFailure:
    """A job that ended in an error. `released` tells whether anything noisy may have left the worker."""

    run_id: str
    shard: int
    error: Exception
    released: bool


BeforeRelease = Callable[[str], None]


class ShardTrainer(Protocol):
    """Runs shard jobs somewhere and yields each outcome as it is there; order is not promised.

    before_release is called with a job's run id before its result leaves the worker. Until then nothing has left it,
    whatever dies; a failure of that job afterwards has released=True.
    """

    def train(
        self, jobs: Sequence[ShardJob], on_progress: OnProgress, *, before_release: BeforeRelease = ...
    ) -> Iterator[ShardResult | ShardFailure]:
        """Run all jobs."""
        ...
