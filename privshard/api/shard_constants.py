"""The constants of one shard's rows: from its cache in the workspace, or by one pass of the base."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from privshard.core.digest import json_digest
from privshard.core.errors import VerificationError
from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import MethodSpec, ShardJob, TrainingParams
from privshard.core.method import Constants, Method
from privshard.data.augmentation import Copies, describe, fixed_augmentations
from privshard.data.images import image_batches
from privshard.data.shards import ShardRows, partition_ids
from privshard.models.base import Base
from privshard.store.layout import constants_path, shard_dir
from privshard.store.objects import ObjectStore
from privshard.training.cache import CacheKey, obtain
from privshard.training.encoding import encode, worth_compiling
from privshard.training.outputs import Place

OnRows = Callable[[int], None]


def shard_constants(
    job: ShardJob, *, base: Base, method: Method, rows: ShardRows, device: str, on_rows: OnRows
) -> Constants | None:
    """What the base computes once for the job's rows, `copies(job.training)` consecutive rows an example.

    A cache that was filled for exactly these rows is read; otherwise it is filled, as `execution.cache` says. While an
    erasure runs beside an actor that nobody waits for any more, nothing of the erased stays: an erasure rewrites the
    rows first and the cache then, and this looks at the rows again once the cache is there.
    """
    objects = ObjectStore(job.workspace, names=job.names)
    path = objects.local_path(constants_path(job.shard)) if objects.is_local else None
    found = obtain(
        rows.ids,
        path=path,
        key=cache_key(base, job.method, job.flags, job.training),
        asked=job.flags.cache,
        device=device,
        fill=lambda place: encode_rows(
            method,
            base,
            rows,
            flags=job.flags,
            device=device,
            on_rows=on_rows,
            training=job.training,
            place=place,
            expected=job.plan.expected_units / job.plan.sample_rate,
        ),
        num_threads=job.flags.threads,
    )
    if path is not None and path.exists() and not _are_still(rows, objects, shard_dir(job.shard)):
        path.unlink(missing_ok=True)
    return found


def _are_still(rows: ShardRows, objects: ObjectStore, directory: str) -> bool:
    """Whether a partition holds these rows; not where they were rewritten, be it under another name."""
    try:
        return partition_ids(objects, directory) == rows.ids
    except VerificationError:
        return False


def copies(training: TrainingParams) -> int:
    """Images that stand for one example: itself, and its augmentations."""
    return 1 + training.augmentations


def cache_key(base: Base, method: MethodSpec, flags: ExecutionFlags, training: TrainingParams) -> CacheKey:
    """What the constants of these settings depend on, beside the rows."""
    return CacheKey(
        base=base.digest,
        transform=json_digest(json.loads(json.dumps(dict(base.transform_config)))),
        method=json.dumps({"name": method.name, **method.options}, sort_keys=True),
        dtype=flags.dtype,
        copies=copies(training),
        augmentation=describe(training.augmentations, flips=training.flips),
    )


def encode_rows(
    method: Method,
    base: Base,
    rows: ShardRows,
    *,
    flags: ExecutionFlags,
    device: str,
    on_rows: OnRows,
    training: TrainingParams | None = None,
    place: Place | None = None,
    expected: float | None = None,
) -> Constants | None:
    """Decode, transform and encode rows, about `flags.micro_batch` images at a time. training: whose augmentations each
    row gets; without it, every row is one image. expected: a public number of rows that decides whether compiling pays,
    so that nobody's presence decides on a rounding; without it, their own number."""
    number = copies(training) if training is not None else 1
    done = 0

    def count(num_images: int) -> None:
        nonlocal done
        done += num_images // number
        on_rows(done)

    transform = base.transform
    if training is not None and training.augmentations:
        transform = Copies(transform, fixed_augmentations(training.augmentations, flips=training.flips))
    examples = max(1, flags.micro_batch // number)
    batches = image_batches(rows.images, transform=transform, batch_size=examples, num_workers=flags.threads)
    num_images = len(rows) * number
    return encode(
        method,
        (batch.flatten(0, -4) for batch in batches),
        num_rows=num_images,
        batch_size=examples * number,
        device=device,
        dtype=getattr(torch, flags.dtype),
        compiled=worth_compiling(
            flags, device=device, num_images=num_images if expected is None else expected * number
        ),
        place=place,
        on_batch=count,
    )
