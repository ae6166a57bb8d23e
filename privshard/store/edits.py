"""Edit and locator files: tensors, public record and private side file, and which of them count.

An edit counts while the current model names it; a locator, while the ledger says it is active.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from privshard.core.digest import tensors_digest
from privshard.core.edit import EditRecord
from privshard.core.errors import VerificationError
from privshard.store import layout
from privshard.store.ledger import Ledger
from privshard.store.objects import ObjectStore
from privshard.store.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    import numpy as np

_FACT = "locator/"
_BESIDE = ".edits"
ACTIVE, RETIRED = "active", "retired"


def edit_id(arrays: Mapping[str, np.ndarray], *, base: str, space: str) -> str:
    """The digest of an edit: of its tensors, base and space."""
    return tensors_digest(arrays, "edit", base, space)


def save_edit(
    store: ObjectStore,
    record: EditRecord,
    arrays: Mapping[str, np.ndarray],
    *,
    header: Mapping[str, str],
    private: Mapping[str, Any],
) -> None:
    """Write an edit's three files, the record last. Saving the same edit again changes nothing."""
    store.write_json(layout.edit_private_path(record.id), private)
    save_tensors(store, layout.edit_path(record.id), arrays, header)
    store.write_json(layout.edit_record_path(record.id), record.to_json())


def load_edit(store: ObjectStore, edit: str) -> tuple[EditRecord, dict[str, np.ndarray], dict[str, str]]:
    """Record, tensors and header; VerificationError where a file is missing, or says something else than another."""
    record = load_edit_record(store, edit)
    arrays, header = load_tensors(store, layout.edit_path(edit))
    said = (header.get("base"), header.get("space"), header.get("locator") or None)
    if said != (record.base, record.space, record.locator):
        raise VerificationError(
            f"Edit {edit}: its record and its tensors name another base, space or locator.", remedy=_RESTORE
        )
    digest = edit_id(arrays, base=record.base, space=record.space)
    if digest != edit or record.id != edit:
        raise VerificationError(f"Edit {edit}: expected tensors of this digest, got {digest}.", remedy=_RESTORE)
    return record, arrays, header


def load_edit_record(store: ObjectStore, edit: str) -> EditRecord:
    """The public record alone."""
    value = store.read_json(layout.edit_record_path(edit))
    try:
        return EditRecord.from_json(value)
    except (TypeError, KeyError) as error:
        raise VerificationError(
            f"Edit {edit}: expected its record, got other JSON: {error}.", remedy=_RESTORE
        ) from error


def delete_edit(store: ObjectStore, edit: str) -> None:
    """Delete an edit's three files, the record last, so that an interrupted deletion may be repeated."""
    for path in (layout.edit_path(edit), layout.edit_private_path(edit), layout.edit_record_path(edit)):
        store.delete(path)


def plain_store(path: str) -> ObjectStore:
    """Where the edits of a plain model file lie: beside it; the file itself is never changed."""
    return ObjectStore(path + _BESIDE)


def edit_ids(store: ObjectStore) -> list[str]:
    """Every edit of which any file is there."""
    return sorted({PurePosixPath(path).stem for path in store.list(layout.EDITS)})


def save_locator(
    store: ObjectStore,
    ledger: Ledger,
    digest: str,
    arrays: Mapping[str, np.ndarray],
    *,
    header: Mapping[str, str],
    private: Mapping[str, Any],
) -> None:
    """Write a locator's two files and make it active, which is the commit point."""
    store.write_json(layout.locator_private_path(digest), private)
    save_tensors(store, layout.locator_path(digest), arrays, header)
    ledger.put(_FACT + digest, ACTIVE)


def locator_states(ledger: Ledger) -> dict[str, str]:
    """Digest -> "active" or "retired", of every locator that the workspace ever had."""
    return {key.removeprefix(_FACT): value for key, value in ledger.facts().items() if key.startswith(_FACT)}


def active_locators(ledger: Ledger) -> list[str]:
    """The locators whose files have to be there, sorted."""
    return sorted(digest for digest, state in locator_states(ledger).items() if state == ACTIVE)


def retire_locators(ledger: Ledger, digests: Collection[str]) -> None:
    """Record that these locators may not be used any more; `keep_only` deletes their files."""
    for digest in sorted(digests):
        ledger.put(_FACT + digest, RETIRED)


def keep_only(store: ObjectStore, ledger: Ledger) -> None:
    """Delete files of edits that the current model doesn't name, and of locators that aren't active."""
    model = ledger.current_model()
    held = model.composition.added if model else frozenset()
    for edit in edit_ids(store):
        if edit not in held:
            delete_edit(store, edit)
    active = active_locators(ledger)
    for path in store.list(layout.LOCATORS):
        if not path.startswith(layout.LOCATOR_PARTS) and PurePosixPath(path).stem not in active:
            store.delete(path)


_RESTORE = "Restore it from a backup, or take it out: privshard edit revert."
