"""`edit revert`: edits are taken out again, and the model is what it was without them, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privshard.api import facts
from privshard.api.reading import current_model
from privshard.api.setup import Setup
from privshard.core.errors import InputError
from privshard.core.model import Composition
from privshard.store.edits import delete_edit, edit_ids, load_edit_record, plain_store
from privshard.store.workspace import Workspace
from privshard.unlearning import eval_cache
from privshard.unlearning.clean_up import clean_up
from privshard.unlearning.edits import dependents


def edit_revert(place: str, *, edits: Sequence[str] = (), everything: bool = False) -> dict[str, Any]:
    """Take edits out of a workspace's model, or from beside a plain model file; those learnt in their presence too.

    edits: ids, or how they begin; everything: all of them. Their files and the images in them are deleted. What is left
    is the composition of the other components and edits, bit for bit: nothing is subtracted. Builds no model.

    InputError for an id that names none or several, and where nothing was asked for.
    """
    started = time.perf_counter()
    if bool(edits) == everything:
        raise InputError("edit revert: expected either ids of edits, or all of them.", remedy="--edit ID, or --all.")
    if Path(place).is_file():
        return _plain(place, edits, everything) | {"elapsed_s": time.perf_counter() - started}
    with Workspace.open(place) as ws, ws.hold():
        setup, before = Setup.load(ws), current_model(ws)
        gone = dependents(ws, _named(sorted(before.composition.added), edits, everything, place))
        after = before.composition.without(set(gone))
        version = before.version
        metrics = dict(before.metrics) if before.metrics else None
        if gone:
            metrics = _metrics(ws, after, setup)
            version = ws.ledger.add_model(after, reason=f"revert {len(gone)} edit(s)", metrics=metrics)
        clean_up(ws)
        return {
            "target": ws.root,
            "reverted": sorted(gone),
            "left": sorted(after.added),
            "model_before": facts.version_name(before.version),
            "model_after": facts.version_name(version),
            "composition": after.digest,
            "metrics_after": metrics,
            "statement": facts.privacy_report(ws, setup)["statement"],
            "elapsed_s": time.perf_counter() - started,
        }


def _plain(path: str, edits: Sequence[str], everything: bool) -> dict[str, Any]:
    store = plain_store(path)
    held = edit_ids(store)
    gone = set(_named(held, edits, everything, path))
    records = {edit: load_edit_record(store, edit) for edit in held if edit not in gone}
    while more := {edit for edit, record in records.items() if edit not in gone and gone & set(record.edits)}:
        gone |= more
    for edit in sorted(gone):
        delete_edit(store, edit)
    return {
        "target": path,
        "reverted": sorted(gone),
        "left": edit_ids(store),
        "model_before": None,
        "model_after": None,
        "composition": None,
        "metrics_after": None,
        "statement": None,
    }


def _named(held: Sequence[str], asked: Sequence[str], everything: bool, place: str) -> list[str]:
    """The edits that ids, or their beginnings, name."""
    if everything:
        return list(held)
    found = []
    for name in asked:
        fitting = [edit for edit in held if edit.startswith(name)]
        if len(fitting) != 1:
            shown = ", ".join(edit[:12] for edit in held) or "none"
            raise InputError(f"edit: expected the id of one edit of {place} (it has {shown}), got {name!r}.")
        found += fitting
    return found


def _metrics(workspace: Workspace, composition: Composition, setup: Setup) -> dict[str, Any] | None:
    """From cached logits alone; None where they are gone."""
    cache = eval_cache.load(workspace)
    return cache.metrics(composition, setup.classes) if cache is not None and cache.covers(composition) else None
