"""Component files: the tensors, what stands beside them (parameters, curvature), the public record and the private side
file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from privshard.core.digest import tensors_digest
from privshard.core.errors import InputError, VerificationError
from privshard.core.model import ComponentRecord
from privshard.store.layout import (
    COMPONENTS,
    CURVATURE,
    PARAMETERS,
    PRIVATE,
    component_path,
    component_record_path,
    curvature_path,
    parameters_path,
    private_path,
)
from privshard.store.objects import ObjectStore
from privshard.store.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    import numpy as np


def save_component(
    store: ObjectStore,
    record: ComponentRecord,
    arrays: Mapping[str, np.ndarray],
    *,
    private: Mapping[str, Any],
    parameters: Mapping[str, np.ndarray] | None = None,
    curvature: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a component's files, the record last. Saving the same component again changes nothing.

    InputError where `record.id` is not its `component_id`, or the record names other parameters or another curvature.
    """
    digest = _identity(record, arrays)
    if digest != record.id:
        raise InputError(
            f"Component of shard {record.shard}: expected its id to be the digest of its tensors, base, shard, attempt "
            f"and {record.space} space, {digest}, got {record.id}.",
            remedy="Take the id from component_id.",
        )
    beside = (
        ("parameters", parameters, record.parameters, parameters_digest, parameters_path),
        ("curvature", curvature, record.curvature, curvature_digest, curvature_path),
    )
    for kind, tensors, wanted, digest_of, _ in beside:
        given = digest_of(tensors) if tensors else None
        if given != wanted:
            raise InputError(
                f"Component of shard {record.shard}: expected {kind} of digest {wanted}, got {given}.",
                remedy=f"Take the digest from {kind}_digest.",
            )
    path = component_record_path(record.id)
    for _, tensors, _, _, place in beside:
        if tensors:
            save_tensors(store, place(record.id), tensors, {"base": record.base, "component": record.id})
    store.write_json(private_path(record.id), private)
    save_tensors(store, component_path(record.id), arrays, {"base": record.base, "space": record.space})
    store.write_json(path, record.to_json())


def load_component(store: ObjectStore, component: str) -> tuple[ComponentRecord, dict[str, np.ndarray]]:
    """The record and the tensors; VerificationError where a file is missing or the digest is another."""
    record = load_record(store, component)
    arrays, metadata = load_tensors(store, component_path(component))
    base, space = metadata.get("base", "absent"), metadata.get("space", "absent")
    if (base, space) != (record.base, record.space):
        raise VerificationError(
            f"Component {component}: its record says base {record.base} and {record.space} space, its tensors say "
            f"{base} and {space}.",
            remedy="Restore both files from a backup, or retrain the shard.",
        )
    digest = _identity(record, arrays)
    if digest != component:
        raise VerificationError(
            f"Component {component}: expected tensors of this digest, got {digest}.",
            remedy="Restore it from a backup, or retrain its shard.",
        )
    return record, arrays


def load_parameters(store: ObjectStore, component: str) -> dict[str, np.ndarray]:
    """The parameters that the tensors are a function of; empty where the record names none. VerificationError where
    the file is missing or the digest is another."""
    wanted = load_record(store, component).parameters
    return {} if wanted is None else _beside(store, component, "parameters", wanted)


def load_curvature(store: ObjectStore, component: str) -> dict[str, np.ndarray]:
    """The curvature around a component; empty where the record names none. VerificationError where the file is missing
    or the digest is another."""
    wanted = load_record(store, component).curvature
    return {} if wanted is None else _beside(store, component, "curvature", wanted)


def load_record(store: ObjectStore, component: str) -> ComponentRecord:
    """The public record alone; VerificationError where it is missing, foreign or of another component."""
    value = store.read_json(component_record_path(component))
    try:
        record = ComponentRecord.from_json(value)
    except (TypeError, KeyError) as error:
        raise VerificationError(
            f"Component {component}: expected a component's record, got other JSON: {error}.",
            remedy="Restore it from a backup, or upgrade privshard.",
        ) from error
    if record.id != component:
        raise VerificationError(f"Component {component}: its record is of {record.id}.", remedy="Restore it.")
    return record


def component_ids(store: ObjectStore) -> list[str]:
    """Every id of which any file is there, sorted. Which components count is for the ledger to say."""
    folders = (COMPONENTS, PARAMETERS, CURVATURE, PRIVATE)
    return sorted({PurePosixPath(path).stem for folder in folders for path in store.list(folder)})


def delete_component(store: ObjectStore, component: str) -> None:
    """Delete a component's files, the record last, so that an interrupted deletion may be repeated."""
    for path in (component_path, parameters_path, curvature_path, private_path, component_record_path):
        store.delete(path(component))


def component_id(arrays: Mapping[str, np.ndarray], *, base: str, space: str, shard: int, attempt: int) -> str:
    """The digest of a component: of its tensors, and of which training gave them. Two empty shards that learnt the
    same zeros are two components."""
    return tensors_digest(arrays, "component", base, space, f"shard {shard}", f"attempt {attempt}")


def parameters_digest(parameters: Mapping[str, np.ndarray]) -> str:
    """The digest of the parameters that a displacement is a function of."""
    return tensors_digest(parameters, "parameters")


def curvature_digest(curvature: Mapping[str, np.ndarray]) -> str:
    """The digest of the curvature around a component."""
    return tensors_digest(curvature, "curvature")


def _beside(store: ObjectStore, component: str, kind: str, wanted: str) -> dict[str, np.ndarray]:
    """The tensors of this kind beside a component, checked."""
    path, digest_of = {
        "parameters": (parameters_path, parameters_digest),
        "curvature": (curvature_path, curvature_digest),
    }[kind]
    arrays, _ = load_tensors(store, path(component))
    digest = digest_of(arrays)
    if digest != wanted:
        raise VerificationError(
            f"Component {component}: expected {kind} of digest {wanted}, got {digest}.",
            remedy="Restore the file from a backup, or retrain the shard.",
        )
    return arrays


def _identity(record: ComponentRecord, arrays: Mapping[str, np.ndarray]) -> str:
    return component_id(arrays, base=record.base, space=record.space, shard=record.shard, attempt=record.attempt)
