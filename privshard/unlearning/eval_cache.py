"""What is cached about held-out rows: logits and frozen activations, both reached by erasure.

Everything here is personal data, so a file that can't be understood is never used, and deleted when rows go.
Shapes: B held-out rows, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from privshard.composition.approximation import averaging_error
from privshard.composition.logits import composed_logits
from privshard.composition.members import arithmetic
from privshard.composition.metrics import metrics
from privshard.core.digest import tensors_digest
from privshard.core.errors import InputError, VerificationError
from privshard.core.model import Composition
from privshard.store.layout import eval_cache_dir
from privshard.store.tensors import load_tensors, save_tensors
from privshard.store.workspace import Workspace

LOGITS_PATH = f"{eval_cache_dir()}/logits.safetensors"
CONSTANTS_PATH = f"{eval_cache_dir()}/constants.safetensors"
MAX_CONSTANTS_BYTES = 1 << 30
_LOGITS, _CONSTANTS = "privshard held-out logits 1", "privshard held-out constants 1"
_LABELS, _BASE, _COMPONENT, _MODEL = "labels", "base", "component/", "model/"


@dataclass(frozen=True, eq=False)
class ModelLogits:
    """A composition that was run, because its logits don't follow from those of its components, and what it gave."""

    composition: Composition
    logits_BC: np.ndarray


@dataclass(frozen=True, eq=False)
class EvalCache:
    """Logits of the held-out rows, in the order of `data/eval`.

    ids: of the rows. labels_B: index of each row's class. base_BC: fp32 logits f0 of the base. component_logits:
    component id -> what that component alone adds to them, z_i = f(x; D_i) - f0, fp32 (B, C). linear: whether
    components are linear in their displacement, so that z_i = J D_i and averages of displacements are averages of
    these. models: digest -> a composition that had to be run.
    """

    ids: tuple[str, ...]
    labels_B: np.ndarray
    base_BC: np.ndarray
    component_logits: Mapping[str, np.ndarray]
    linear: bool = True
    models: Mapping[str, ModelLogits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.ids)
        if len(set(self.ids)) != rows:
            raise InputError("held-out cache: expected every row once.")
        if self.labels_B.shape != (rows,) or self.base_BC.ndim != 2 or len(self.base_BC) != rows:
            raise InputError(
                f"held-out cache: expected labels and logits of {rows} rows, got {self.labels_B.shape} and "
                f"{self.base_BC.shape}."
            )
        given = {f"Component {name}": z_BC for name, z_BC in self.component_logits.items()}
        given |= {f"Composition {digest}": model.logits_BC for digest, model in self.models.items()}
        for name, logits_BC in given.items():
            if logits_BC.shape != self.base_BC.shape:
                raise InputError(f"{name}: expected logits of shape {self.base_BC.shape}, got {logits_BC.shape}.")

    def without_rows(self, ids: Collection[str]) -> EvalCache:
        """The cache of the other rows, in the same order."""
        kept = _kept(self.ids, gone=ids)
        return EvalCache(
            ids=tuple(self.ids[row] for row in kept),
            labels_B=self.labels_B[kept],
            base_BC=self.base_BC[kept],
            component_logits={name: z_BC[kept] for name, z_BC in self.component_logits.items()},
            linear=self.linear,
            models={name: replace(model, logits_BC=model.logits_BC[kept]) for name, model in self.models.items()},
        )

    def without_component(self, component: str) -> EvalCache:
        """The cache of the other components, and of the compositions that don't have it."""
        others = {name: z_BC for name, z_BC in self.component_logits.items() if name != component}
        models = {name: model for name, model in self.models.items() if component not in model.composition.weights}
        return replace(self, component_logits=others, models=models)

    def with_component(self, component: str, logits_BC: np.ndarray) -> EvalCache:
        """The cache with what one more component adds; its rows are those of the cache, in the same order."""
        z_BC = np.asarray(logits_BC, dtype=np.float32)
        return replace(self, component_logits={**self.component_logits, component: z_BC})

    def with_model(self, composition: Composition, logits_BC: np.ndarray) -> EvalCache:
        """The cache with the logits of one more composition."""
        model = ModelLogits(composition, np.asarray(logits_BC, dtype=np.float32))
        return replace(self, models={**self.models, composition.digest: model})

    @property
    def components(self) -> frozenset[str]:
        """Every component that anything here was computed with."""
        return frozenset(self.component_logits).union(*(model.composition.weights for model in self.models.values()))

    def with_added(self, composition: Composition) -> np.ndarray:
        """The logits of the base and of what the composition adds to it, its edits; float64."""
        added = {name: composition.weights[name] for name in composition.added}
        return composed_logits(self.base_BC, self.component_logits, added)

    def covers(self, composition: Composition) -> bool:
        """Whether the logits of `composition` are here, or follow from those of its components."""
        if arithmetic(composition, linear=self.linear):
            return set(composition.weights) <= set(self.component_logits)
        return composition.digest in self.models

    def logits(self, composition: Composition) -> np.ndarray:
        """The exact logits of `composition`, without evaluating a model. InputError where it isn't covered."""
        if not arithmetic(composition, linear=self.linear):
            if composition.digest not in self.models:
                raise InputError(
                    f"held-out cache: expected the logits of composition {composition.digest[:16]}…, which don't "
                    "follow from those of its components, found none.",
                    remedy="Compute them: privshard evaluate",
                )
            return self.models[composition.digest].logits_BC.astype(np.float64)
        return composed_logits(self.base_BC, self.component_logits, composition.weights)

    def metrics(self, composition: Composition, classes: Sequence[str]) -> dict[str, Any]:
        """What `composition` scores on the rows, without evaluating a model. Where it averages displacements that
        aren't linear, `averaging_error` says how far it is from the ensemble of its components, if these are here.
        InputError where it isn't covered."""
        logits_BC = self.logits(composition)
        found = metrics(logits_BC, self.labels_B, classes)
        ensemble = replace(composition, combine="ensemble")
        exact = composition.combine != "average" or arithmetic(composition, linear=self.linear)
        if exact or not self.covers(ensemble):
            return found
        error = averaging_error(logits_BC, self.logits(ensemble), self.base_BC, self.labels_B)
        return {**found, "averaging_error": error}


def save(workspace: Workspace, cache: EvalCache) -> None:
    """Write the cache, whole or not at all."""
    arrays = {
        _LABELS: cache.labels_B.astype(np.int64),
        _BASE: cache.base_BC.astype(np.float32),
        **{_COMPONENT + name: z_BC.astype(np.float32) for name, z_BC in cache.component_logits.items()},
    }
    arrays |= {_MODEL + digest: model.logits_BC.astype(np.float32) for digest, model in cache.models.items()}
    metadata = {"format": _LOGITS, "ids": json.dumps(cache.ids)}
    if not cache.linear or cache.models:
        metadata["linear"] = json.dumps(cache.linear)
        models = [model.composition.to_json() for _, model in sorted(cache.models.items())]
        metadata["models"] = json.dumps(models)
    save_tensors(workspace.objects, LOGITS_PATH, arrays, {**metadata, "digest": _digest(arrays, metadata)})


def load(workspace: Workspace) -> EvalCache | None:
    """The cache as it was saved; None where there is none, or a truncated, changed or foreign file: make it again."""
    found = _read(workspace, LOGITS_PATH, _LOGITS)
    if found is None or found.metadata.get("digest") != _digest(found.arrays, found.metadata):
        return None
    try:
        logits = {
            name.removeprefix(_COMPONENT): array for name, array in found.arrays.items() if name.startswith(_COMPONENT)
        }
        models = [Composition.from_json(value) for value in json.loads(found.metadata.get("models", "[]"))]
        return EvalCache(
            found.ids,
            found.arrays[_LABELS],
            found.arrays[_BASE],
            logits,
            linear="models" not in found.metadata or json.loads(found.metadata.get("linear", "false")) is True,
            models={model.digest: ModelLogits(model, found.arrays[_MODEL + model.digest]) for model in models},
        )
    except (KeyError, InputError, VerificationError):
        return None


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    further = [metadata[name] for name in ("models", "linear") if name in metadata]
    return tensors_digest(arrays, _LOGITS, metadata["ids"], *further)


def save_constants(
    workspace: Workspace, *, ids: Sequence[str], arrays: Mapping[str, np.ndarray], base_digest: str
) -> bool:
    """Keep what the frozen base computed once for held-out rows; whether it was kept.

    arrays: any names, fp32, rows leading in the order of `ids`. More than 1 GiB is not kept, and replaces nothing:
    what was kept before is deleted. InputError for an array of other rows.
    """
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != len(ids):
            raise InputError(f"Constants {name}: expected {len(ids)} rows leading, got shape {array.shape}.")
    if sum(array.nbytes for array in arrays.values()) > MAX_CONSTANTS_BYTES:
        workspace.objects.delete(CONSTANTS_PATH)
        return False
    metadata = {"format": _CONSTANTS, "ids": json.dumps(list(ids)), "base": base_digest}
    save_tensors(workspace.objects, CONSTANTS_PATH, arrays, metadata)
    return True


def load_constants(workspace: Workspace, *, ids: Sequence[str], base_digest: str) -> dict[str, np.ndarray] | None:
    """What was kept for exactly these rows in this order, on this base; None otherwise: compute it again."""
    found = _read_constants(workspace)
    if found is None or found.ids != tuple(ids) or found.metadata.get("base") != base_digest:
        return None
    return dict(found.arrays)


def constants_ids(workspace: Workspace) -> tuple[str, ...] | None:
    """The rows that the kept constants are about; None where there are none that can be understood."""
    found = _read_constants(workspace)
    return None if found is None else found.ids


def erase_rows(workspace: Workspace, *, keep: Collection[str]) -> None:
    """Rewrite both files without every row that is not in `keep`, the ids that `data/eval` holds by now.

    Doing it again changes nothing. A file here that can't be understood might hold an erased row: it is deleted.
    """
    kept = frozenset(keep)
    for path in workspace.objects.list(eval_cache_dir()):
        if path not in (LOGITS_PATH, CONSTANTS_PATH):
            workspace.objects.delete(path)
    cache = load(workspace)
    if cache is None:
        workspace.objects.delete(LOGITS_PATH)
    elif gone := set(cache.ids) - kept:
        save(workspace, cache.without_rows(gone))
    found = _read_constants(workspace)
    if found is None:
        workspace.objects.delete(CONSTANTS_PATH)
    elif gone := set(found.ids) - kept:
        rows = _kept(found.ids, gone=gone)
        save_constants(
            workspace,
            ids=[found.ids[row] for row in rows],
            arrays={name: array[rows] for name, array in found.arrays.items()},
            base_digest=found.metadata["base"],
        )


def keep_components(workspace: Workspace, components: Collection[str]) -> None:
    """Rewrite the logits without every component that is not in `components`, and without every composition that has
    it. Doing it again changes nothing."""
    cache = load(workspace)
    gone = cache.components - set(components) if cache else set()
    if cache and gone:
        for component in gone:
            cache = cache.without_component(component)
        save(workspace, cache)


@dataclass(frozen=True)
class _Found:
    """A file as it was read: rows, arrays, metadata."""

    ids: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]


def _read(workspace: Workspace, path: str, kind: str) -> _Found | None:
    """A file of this kind, None where there is none or it can't be understood."""
    if not workspace.objects.exists(path):
        return None
    try:
        arrays, metadata = load_tensors(workspace.objects, path)
        if metadata.get("format") != kind:
            return None
        ids = json.loads(metadata["ids"])
    except (VerificationError, KeyError, ValueError):
        return None
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        return None
    return _Found(tuple(ids), arrays, metadata)


def _read_constants(workspace: Workspace) -> _Found | None:
    found = _read(workspace, CONSTANTS_PATH, _CONSTANTS)
    if found is None or "base" not in found.metadata:
        return None
    whole = all(array.ndim > 0 and len(array) == len(found.ids) for array in found.arrays.values())
    return found if whole else None


def _kept(ids: Sequence[str], *, gone: Collection[str]) -> list[int]:
    """The rows of the others, in order."""
    left = frozenset(gone)
    return [row for row, name in enumerate(ids) if name not in left]
