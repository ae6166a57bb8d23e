"""Held-out rows: encoded once, their logits kept for every component, so that compositions are measured by arithmetic;
those whose logits don't add are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from privshard.api.setup import Setup
from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import OnProgress
from privshard.core.model import Composition
from privshard.store.layout import eval_dir
from privshard.store.lock import BusyError
from privshard.store.workspace import Workspace
from privshard.unlearning import eval_cache
from privshard.unlearning.eval_cache import EvalCache

if TYPE_CHECKING:
    from privshard.core.method import Constants, Method
    from privshard.data.shards import ShardRows

NOTE = "Measured on held-out rows, which are personal data too: not covered by the privacy guarantee."


def refresh(
    workspace: Workspace,
    setup: Setup,
    *,
    components: list[str],
    flags: ExecutionFlags,
    base_state: Mapping[str, np.ndarray] | None,
    on_progress: OnProgress,
    models: Sequence[Composition] = (),
) -> EvalCache:
    """The cache with the logits of exactly `components` that covers `models`, compositions of them; only what is
    missing is computed.

    It is saved by whoever holds the workspace, or can have it for that long: an evaluation beside a removal must not
    bring rows back that are just being erased. Where another process holds it, the result is returned unsaved.
    """
    cache = eval_cache.load(workspace)
    if cache is not None:
        for gone in cache.components - set(components):
            cache = cache.without_component(gone)
        whole = set(components) <= set(cache.component_logits)
        if whole and all(cache.covers(model) for model in models):
            return cache
    if not workspace.is_held:
        with suppress(BusyError), workspace.hold():
            return refresh(
                workspace,
                setup,
                components=components,
                flags=flags,
                base_state=base_state,
                on_progress=on_progress,
                models=models,
            )
    held = _HeldOut.of(workspace, setup, flags=flags, base_state=base_state, on_progress=on_progress)
    if cache is None:
        cache = EvalCache(held.rows.ids, held.labels_B(setup.classes), held.base_logits(), {}, linear=held.linear)
    for name in components:
        if name not in cache.component_logits:
            cache = cache.with_component(name, held.logits(Composition("", {name: 1.0})) - cache.base_BC)
    for model in models:
        if not cache.covers(model):
            cache = cache.with_model(model, held.logits(model))
    if workspace.is_held:
        eval_cache.save(workspace, cache)
    return cache


def run_model(
    workspace: Workspace,
    setup: Setup,
    composition: Composition,
    *,
    flags: ExecutionFlags,
    base_state: Mapping[str, np.ndarray] | None,
    on_progress: OnProgress,
) -> np.ndarray:
    """The logits (B, C) of one composition on the held-out rows; only what the base computes once is
    saved, by whoever holds the workspace."""
    held = _HeldOut.of(workspace, setup, flags=flags, base_state=base_state, on_progress=on_progress)
    return held.logits(composition)


def measure(cache: EvalCache, composition: Composition, classes: tuple[str, ...]) -> dict[str, Any]:
    """Metrics of one composition on the cached rows."""
    return cache.metrics(composition, classes)


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """The held-out rows, encoded, and the method that runs compositions on them. constants None: there are no rows."""

    workspace: Workspace
    rows: ShardRows
    method: Method
    constants: Constants | None
    num_classes: int
    batch: int
    device: str

    @staticmethod
    def of(
        workspace: Workspace,
        setup: Setup,
        *,
        flags: ExecutionFlags,
        base_state: Mapping[str, np.ndarray] | None,
        on_progress: OnProgress,
    ) -> _HeldOut:
        """Encode the rows, or read what was kept of that."""
        import torch

        from privshard.api import worker
        from privshard.api.methods import make_method
        from privshard.data.shards import read_partition

        rows = read_partition(workspace.objects, eval_dir())
        device = worker.pick_device(flags)
        base = worker.open_base(setup.base, base_state, digest=setup.base_digest, objects=workspace.objects)
        method = make_method(setup.method, base.view.to(device), core=base.core)
        arrays = eval_cache.load_constants(workspace, ids=rows.ids, base_digest=setup.base_digest)
        if arrays is None:
            _, arrays = worker.encode_eval(
                workspace.objects,
                eval_dir(),
                spec=setup.base,
                digest=setup.base_digest,
                method=setup.method,
                flags=flags,
                base_state=base.state,
                on_progress=on_progress,
            )
            if workspace.is_held:
                eval_cache.save_constants(workspace, ids=rows.ids, arrays=arrays, base_digest=setup.base_digest)
        constants = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()} if len(rows) else None
        batch = flags.micro_batch * method.batch_scale
        return _HeldOut(workspace, rows, method, constants, len(setup.classes), batch, device)

    @property
    def linear(self) -> bool:
        """Whether components are linear in their displacement."""
        return self.method.space == "tangent"

    def labels_B(self, classes: tuple[str, ...]) -> np.ndarray:
        """The index of each row's class."""
        index = {name: position for position, name in enumerate(classes)}
        return np.array([index[label] for label in self.rows.labels], dtype=np.int64)

    def base_logits(self) -> np.ndarray:
        """The base's logits (B, C)."""
        return self.logits(Composition("", {}))

    def logits(self, composition: Composition) -> np.ndarray:
        """Logits (B, C) of a composition, by running it."""
        from privshard.api import worker
        from privshard.api.composed import displacements

        if self.constants is None:
            return np.zeros((0, self.num_classes), dtype=np.float32)
        found = displacements(self.workspace, composition, method=self.method, device=self.device)
        each = worker.component_logits(self.method, self.constants, [moved for _, moved in found], batch=self.batch)
        return sum(weight * logits_BC for (weight, _), logits_BC in zip(found, each, strict=True))  # pyright: ignore
