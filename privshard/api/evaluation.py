"""Held-out rows: encoded once, their logits kept for every component, so that any composition is measured by
arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from privshard.api.setup import Setup
from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import OnProgress
from privshard.core.model import Composition
from privshard.store.layout import eval_dir
from privshard.store.workspace import Workspace
from privshard.unlearning import eval_cache
from privshard.unlearning.eval_cache import EvalCache

NOTE = "Measured on held-out rows, which are personal data too: not covered by the privacy guarantee."


def refresh(
    workspace: Workspace,
    setup: Setup,
    *,
    components: list[str],
    flags: ExecutionFlags,
    base_state: Mapping[str, np.ndarray] | None,
    on_progress: OnProgress,
) -> EvalCache:
    """The cache with the logits of exactly `components`; only what is missing is computed, and it is saved."""
    cache = eval_cache.load(workspace)
    if cache is not None:
        for gone in set(cache.component_logits) - set(components):
            cache = cache.without_component(gone)
        missing = [name for name in components if name not in cache.component_logits]
        if not missing:
            return cache
    rows_cache, logits = _compute(
        workspace,
        setup,
        components=components if cache is None else [n for n in components if n not in cache.component_logits],
        flags=flags,
        base_state=base_state,
        on_progress=on_progress,
    )
    cache = rows_cache if cache is None else cache
    for name, logits_BC in logits.items():
        cache = cache.with_component(name, logits_BC)
    eval_cache.save(workspace, cache)
    return cache


def measure(cache: EvalCache, composition: Composition, classes: tuple[str, ...]) -> dict[str, Any]:
    """Metrics of one composition on the cached rows."""
    return cache.metrics(composition, classes)


def _compute(
    workspace: Workspace,
    setup: Setup,
    *,
    components: list[str],
    flags: ExecutionFlags,
    base_state: Mapping[str, np.ndarray] | None,
    on_progress: OnProgress,
) -> tuple[EvalCache, dict[str, np.ndarray]]:
    """The base's logits on the held-out rows, and what each component adds to them."""
    import torch

    from privshard.api import worker
    from privshard.api.methods import make_method
    from privshard.data.shards import read_partition

    rows = read_partition(workspace.objects, eval_dir())
    device = worker.pick_device(flags)
    base = worker.open_base(setup.base, base_state, digest=setup.base_digest)
    method = make_method(setup.method, base.view.to(device))
    arrays = eval_cache.load_constants(workspace, ids=rows.ids, base_digest=setup.base_digest)
    if arrays is None:
        _, arrays = worker.encode_eval(
            workspace.root,
            eval_dir(),
            spec=setup.base,
            digest=setup.base_digest,
            method=setup.method,
            flags=flags,
            base_state=base_state,
            on_progress=on_progress,
        )
        eval_cache.save_constants(workspace, ids=rows.ids, arrays=arrays, base_digest=setup.base_digest)
    index = {name: position for position, name in enumerate(setup.classes)}
    labels_B = np.array([index[label] for label in rows.labels], dtype=np.int64)
    empty = np.zeros((0, len(setup.classes)), dtype=np.float32)
    if not len(rows):
        return EvalCache(rows.ids, labels_B, empty, {}), {name: empty for name in components}
    constants = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    zero = {name: torch.zeros(shape, device=device) for name, shape in method.shapes().items()}
    moved = [_tensors(workspace, name, device) for name in components]
    batch = flags.micro_batch * method.batch_scale
    base_BC, *each = worker.component_logits(method, constants, [zero, *moved], batch=batch)
    added = {name: logits - base_BC for name, logits in zip(components, each, strict=True)}
    return EvalCache(rows.ids, labels_B, base_BC, {}), added


def _tensors(workspace: Workspace, component: str, device: str) -> dict[str, Any]:
    import torch

    _, arrays = workspace.load_component(component)
    return {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}
