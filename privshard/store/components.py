"""Component files: the tensors, parameters where the method has some, the public record and the private side file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from privshard.core.digest import tensors_digest
from privshard.core.errors import InputError, VerificationError
from privshard.core.model import ComponentRecord
from privshard.store.layout import (
    COMPONENTS,
    PARAMETERS,
    PRIVATE,
    component_path,
    component_record_path,
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
) -> None:
    """Write a component's files, the record last. Saving the same component again changes nothing.

    InputError where `record.id` is not its `component_id`, or `record.parameters` not the digest of its parameters.
    """
    digest = _identity(record, arrays)
    if digest != record.id:
        raise InputError(
            f"Component of shard {record.shard}: expected its id to be the digest of its tensors, base, shard, attempt "
            f"and {record.space} space, {digest}, got {record.id}.",
            remedy="Take the id from component_id.",
        )
    given = parameters_digest(parameters) if parameters else None
    if given != record.parameters:
        raise InputError(
            f"Component of shard {record.shard}: expected parameters of digest {record.parameters}, got {given}.",
            remedy="Take the digest from parameters_digest.",
        )
    path = component_record_path(record.id)
    if parameters:
        save_tensors(store, parameters_path(record.id), parameters, {"base": record.base, "component": record.id})
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
    if wanted is None:
        return {}
    arrays, _ = load_tensors(store, parameters_path(component))
    digest = parameters_digest(arrays)
    if digest != wanted:
        raise VerificationError(
            f"Component {component}: expected parameters of digest {wanted}, got {digest}.",
            remedy="Restore the file from a backup, or retrain the shard.",
        )
    return arrays


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
    folders = (COMPONENTS, PARAMETERS, PRIVATE)
    return sorted({PurePosixPath(path).stem for folder in folders for path in store.list(folder)})


def delete_component(store: ObjectStore, component: str) -> None:
    """Delete a component's files, the record last, so that an interrupted deletion may be repeated."""
    for path in (component_path, parameters_path, private_path, component_record_path):
        store.delete(path(component))


def component_id(arrays: Mapping[str, np.ndarray], *, base: str, space: str, shard: int, attempt: int) -> str:
    """The digest of a component: of its tensors, and of which training gave them. Two empty shards that learnt the
    same zeros are two components."""
    return tensors_digest(arrays, "component", base, space, f"shard {shard}", f"attempt {attempt}")


def parameters_digest(parameters: Mapping[str, np.ndarray]) -> str:
    """The digest of the parameters that a displacement is a function of."""
    return tensors_digest(parameters, "parameters")


def _identity(record: ComponentRecord, arrays: Mapping[str, np.ndarray]) -> str:
    return component_id(arrays, base=record.base, space=record.space, shard=record.shard, attempt=record.attempt)
