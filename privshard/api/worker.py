"""What runs on a worker: one shard from its rows to its component, and the encoding of held-out rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from privshard.api.methods import make_method
from privshard.api.shard_constants import copies, encode_rows, shard_constants
from privshard.composition.inference import logits_of_each, stacked
from privshard.core.errors import ResourceError, VerificationError
from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import MethodSpec, OnProgress, Progress, ShardJob, ShardResult
from privshard.core.method import Constants, Method, ParameterMethod
from privshard.core.model import BaseSpec
from privshard.data.shards import ShardRows, read_partition
from privshard.models.base import Base, load_base
from privshard.privacy.stream import fresh_key, insecure_key
from privshard.store.layout import shard_dir
from privshard.store.objects import ObjectStore
from privshard.store.public_parts import load_public_parts
from privshard.training.encoding import pays
from privshard.training.shard import train_shard

_TOGETHER = 8  # displacements whose logits are computed at once


def run_job(job: ShardJob, base_state: Mapping[str, np.ndarray] | None, on_progress: OnProgress) -> ShardResult:
    """Train one shard's component: the same function in this process and in a Ray actor.

    The base's digest is checked before any private row is read. Nothing leaves but the result.
    """
    base = open_base(job.base, base_state, digest=job.base_digest)
    rows = read_partition(ObjectStore(job.workspace, names=job.names), shard_dir(job.shard))
    device = pick_device(job.flags)
    method = make_method(job.method, base.view.to(device), core=base.core)

    def tell(stage: str, total: int) -> Callable[[int], None]:
        return lambda done: on_progress(Progress(job.run_id, job.shard, stage, done, total))

    started = time.perf_counter()
    on_rows = tell("encode", len(rows))
    constants = shard_constants(job, base=base, method=method, rows=rows, device=device, on_rows=on_rows)
    encode_s = time.perf_counter() - started
    index = {name: position for position, name in enumerate(job.classes)}
    labels = [index[label] for label in rows.labels for _ in range(copies(job.training))]
    units = rows.ids if job.plan.unit == "example" else rows.subjects
    step = tell("train", job.plan.steps)
    trained = train_shard(
        method,
        constants,
        labels_B=torch.tensor(labels, dtype=torch.long, device=device),
        unit_of_row=[unit for unit in units for _ in range(copies(job.training))],
        plan=job.plan,
        params=job.training,
        root_key=root_key(job),
        copies=copies(job.training),
        max_rows=job.flags.micro_batch * method.batch_scale,
        dtype=getattr(torch, job.flags.dtype),
        compiled=_compiled(method, job, device=device),
        on_step=lambda done, total: step(done),
    )
    return ShardResult(
        run_id=job.run_id,
        shard=job.shard,
        attempt=job.attempt,
        tensors={name: tensor.numpy() for name, tensor in trained.tensors.items()},
        space=method.space,
        example_ids=rows.ids,
        num_units=len(set(units)),
        timing_s={"encode": encode_s, "train": trained.train_s},
        parameters={name: tensor.numpy() for name, tensor in trained.parameters.items()},
        curvature={name: tensor.numpy() for name, tensor in trained.curvature.items()},
    )


def _compiled(method: Method, job: ShardJob, *, device: str) -> bool:
    """Whether the steps are compiled: where the method says after how many examples that has paid, and as many are
    expected. By public constants, so that nobody's presence decides on a rounding."""
    enough = getattr(method, "compiled_after", None)
    expected = job.plan.expected_units * job.plan.steps
    return enough is not None and pays(job.flags, device=device, amount=expected, enough=enough)


def encode_eval(
    objects: ObjectStore,
    directory: str,
    *,
    spec: BaseSpec,
    digest: str,
    method: MethodSpec,
    flags: ExecutionFlags,
    base_state: Mapping[str, np.ndarray] | None,
    on_progress: OnProgress = lambda _: None,
) -> tuple[ShardRows, dict[str, np.ndarray]]:
    """The held-out rows, and what the base computes once for them."""
    base = open_base(spec, base_state, digest=digest)
    rows = read_partition(objects, directory)
    device = pick_device(flags)
    constants = encode_rows(
        make_method(method, base.view.to(device), core=base.core),
        base,
        rows,
        flags=flags,
        device=device,
        on_rows=lambda done: on_progress(Progress("evaluate", None, "evaluate", done, len(rows))),
    )
    return rows, {name: tensor.float().cpu().numpy() for name, tensor in (constants or {}).items()}


def component_logits(
    method: Method, constants: Constants, displacements: Sequence[Mapping[str, torch.Tensor]], *, batch: int
) -> list[np.ndarray]:
    """For each displacement, the logits (B, C) of the base moved by it alone, from encoded rows.

    Methods that are linear in the displacement take several at once, and compute what they share once.
    """
    num = len(next(iter(constants.values())))
    together = 1 if isinstance(method, ParameterMethod) else min(_TOGETHER, len(displacements))
    out: list[np.ndarray] = []
    for first in range(0, len(displacements), together):
        stack_S = stacked(displacements[first : first + together]) if together > 1 else None
        rows = []
        for start in range(0, num, max(1, batch // together)):
            part = {name: tensor[start : start + max(1, batch // together)] for name, tensor in constants.items()}
            if stack_S is None:
                rows.append(method.logits(part, displacements[first])[None].cpu().numpy())
            else:
                rows.append(logits_of_each(method, part, stack_S).cpu().numpy())
        out += list(np.concatenate(rows, axis=1))
    return out


def open_base(
    spec: BaseSpec,
    state: Mapping[str, np.ndarray] | None,
    *,
    digest: str | None,
    objects: ObjectStore | None = None,
) -> Base:
    """The base, checked against the digest that components were, or will be, learnt on. objects: of the workspace that
    holds what public rows taught; not needed beside a state."""
    public = None
    if state is None and spec.public is not None and objects is not None:
        public = load_public_parts(objects, spec.public)
    base = load_base(spec, state=state, public=public)
    if digest is not None and base.digest != digest:
        raise VerificationError(
            f"Base {spec.model}: expected digest {digest[:16]}…, got {base.digest[:16]}….",
            remedy="The weights, the starting head or timm's transform changed; restore what the workspace was made "
            "with.",
        )
    return base


def pick_device(flags: ExecutionFlags) -> str:
    """The torch device that `flags.device` means here."""
    device = flags.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ResourceError(
            f"execution.device: expected a CUDA GPU for {device!r}, found none.",
            remedy="Set execution.device to cpu or auto.",
        )
    return device


def root_key(job: ShardJob) -> bytes:
    """Fresh entropy, or in tests a function of (seed, shard, attempt)."""
    if job.insecure_seed is None:
        return fresh_key()
    return insecure_key(job.insecure_seed, shard=job.shard, attempt=job.attempt)
