"""`audit`: attack the workspace's own plan on canaries; no private row is read and no released file is touched."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.api.setup import Setup, flags_of, stored_recipe
from privshard.core.errors import InputError
from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import OnProgress, Progress, ShardJob
from privshard.store.objects import ObjectStore
from privshard.store.workspace import Workspace

if TYPE_CHECKING:
    from privshard.audit.draws import NewKey
    from privshard.audit.report import AuditReport

KINDS = ("step", "run", "removal")
_RUN_CANARIES = 1000


def audit(
    workspace: str,
    *,
    kind: str = "step",
    canaries: int | None = None,
    confidence: float = 0.95,
    html: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """A lower bound on the epsilon of one training of a shard, against what the workspace claims.

    kind: "step", white-box canaries through the production step; "run", coin-flip canary images through the
    workspace's base, method and optimizer; "removal", canaries that leave a shard. Canaries are generated: the audit
    needs the setup, and the base for "run", but no private row. canaries: how many (None: the audit's default).
    html: a file to write the report and its plot to. Spends no budget, because nothing private takes part.
    """
    if kind not in KINDS:
        raise InputError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}.")
    if canaries is not None and canaries < 1:
        raise InputError(f"canaries: expected a positive number, got {canaries}.")
    tell = on_progress or (lambda _: None)
    with Workspace.open(workspace) as ws:
        setup, flags = Setup.load(ws), flags_of(stored_recipe(ws))
        seeded = ws.ledger.get("insecure_seed") is not None
    report = _run(setup, flags, ws.objects, kind=kind, canaries=canaries, confidence=confidence, tell=tell)
    found = {"workspace": str(workspace), **report.to_json()}
    if seeded:
        found["note"] = SEEDED
    if html is not None:
        from privshard.report.audit_page import audit_page
        from privshard.report.html import write_page

        write_page(Path(html), audit_page(found))
        found["html"] = str(html)
    return found


def _run(
    setup: Setup,
    flags: ExecutionFlags,
    objects: ObjectStore,
    *,
    kind: str,
    canaries: int | None,
    confidence: float,
    tell: OnProgress,
) -> AuditReport:
    def on_step(done: int, total: int) -> None:
        tell(Progress("audit", None, "audit", done, total))

    common = {
        "claim": setup.spend(1),
        "new_key": _keys(setup, flags),
        "confidence": confidence,
        "on_step": on_step,
    }
    if kind == "step":
        from privshard.audit import step

        return step.step_audit(setup.plan, num_canaries=canaries or step.DEFAULT_CANARIES, **common)
    if kind == "removal":
        from privshard.audit import removal

        return removal.removal_audit(setup.plan, num_canaries=canaries or removal.DEFAULT_CANARIES, **common)
    return _run_audit(setup, flags, objects, number=canaries or _RUN_CANARIES, common=common)


def _run_audit(
    setup: Setup, flags: ExecutionFlags, objects: ObjectStore, *, number: int, common: dict[str, Any]
) -> AuditReport:
    """Canary images through the workspace's base and method."""
    import numpy as np
    import torch

    from privshard.api import worker
    from privshard.api.methods import make_method
    from privshard.audit.run import check_run, run_audit
    from privshard.training.encoding import encode

    check_run(setup.plan, num_canaries=number, num_shards=setup.num_shards, confidence=common["confidence"])
    base = worker.open_base(setup.base, None, digest=setup.base_digest, objects=objects)
    device = worker.pick_device(flags)
    method = make_method(setup.method, base.view.to(device), core=base.core)
    coins = np.random.default_rng()
    size = tuple(base.transform_config["input_size"])
    batches = (
        _images(min(flags.micro_batch, number - start), size, coins) for start in range(0, number, flags.micro_batch)
    )
    constants = encode(
        method,
        batches,
        num_rows=number,
        batch_size=flags.micro_batch,
        device=device,
        dtype=getattr(torch, flags.dtype),
    )
    assert constants is not None
    return run_audit(
        method,
        constants,
        labels_B=torch.from_numpy(coins.integers(0, len(setup.classes), number)).to(device),
        plan=setup.plan,
        params=setup.training,
        num_shards=setup.num_shards,
        coins=coins,
        max_rows=flags.micro_batch * method.batch_scale,
        **common,
    )


def _images(number: int, size: tuple[int, ...], rng: Any) -> Any:
    """Random patterns at several scales, in the numbers that the base's transform gives for images."""
    import torch
    from torch.nn import functional as F

    channels, height, width = size
    total = torch.zeros(number, channels, height, width)
    scales = [2**power for power in range(1, max(2, int(math.log2(min(height, width)))))]
    for cells in scales:
        coarse = torch.from_numpy(rng.standard_normal((number, channels, cells, cells))).float()
        total += F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return total / len(scales) ** 0.5


def _keys(setup: Setup, flags: ExecutionFlags) -> NewKey:
    """(shard, attempt) -> the root key that a worker would draw for that job."""

    def new_key(shard: int, attempt: int) -> bytes:
        from privshard.api.worker import root_key

        return root_key(_job(setup, flags, shard=shard, attempt=attempt))

    return new_key


def _job(setup: Setup, flags: ExecutionFlags, *, shard: int, attempt: int) -> ShardJob:
    return ShardJob(
        run_id="audit",
        workspace="",
        shard=shard,
        attempt=attempt,
        base=setup.base,
        base_digest=setup.base_digest,
        classes=setup.classes,
        method=setup.method,
        training=setup.training,
        plan=setup.plan,
        flags=flags,
    )


SEEDED = (
    "The workspace's own randomness came from insecure_seed, so its components are not private, whatever the attack "
    "finds. The audit drew secret randomness: it is about the mechanism, not about these components."
)
