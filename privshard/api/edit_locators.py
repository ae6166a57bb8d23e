"""Locators by file or by digest: loaded for a model, or refused."""

from __future__ import annotations

from pathlib import Path

from privshard.api.edit_target import Target
from privshard.core.errors import InputError
from privshard.editing.locator import Locator, read_locator
from privshard.editing.places import check_places
from privshard.store.edits import RETIRED, active_locators, locator_states
from privshard.store.layout import locator_path
from privshard.store.objects import ObjectStore
from privshard.store.tensors import load_tensors


def load_locator(target: Target, name: str) -> Locator:
    """The locator that `name` says: a file, or in a workspace the digest (or its beginning) of one of its own.

    InputError where there is none, where it is of another base, acts in another space or scores blocks that the model
    can't edit, and where it was retired; VerificationError where its weights can't be loaded.
    """
    store, path = _find(target, name)
    arrays, header = load_tensors(store, path)
    locator = read_locator(arrays, header, place=name, base=target.base.digest)
    states = locator_states(target.workspace.ledger) if target.workspace else {}
    if states.get(locator.digest) == RETIRED:
        raise InputError(
            f"locator {locator.digest[:12]}: it was retired, because somebody it was trained on was forgotten.",
            remedy="Train another: privshard edit train-locator.",
        )
    space = "weight" if target.point is None else "tangent"
    if locator.trained.get("space") != space:
        raise InputError(
            f"locator {name}: expected one for edits in space {space}, got one for {locator.trained.get('space')}.",
            remedy="Train one on this model: privshard edit train-locator.",
        )
    check_places(locator.places, depth=target.depth, first_block=target.first_block)
    locator.network.to(target.device)
    return locator


def _find(target: Target, name: str) -> tuple[ObjectStore, str]:
    file = Path(name)
    if file.is_file():
        return ObjectStore(file.resolve().parent), file.name
    own = active_locators(target.workspace.ledger) if target.workspace else []
    found = [digest for digest in own if digest.startswith(name)]
    if len(found) != 1:
        shown = ", ".join(digest[:12] for digest in own) or "none"
        raise InputError(f"locator: expected a file, or one of this workspace's ({shown}), got {name!r}.")
    return target.store, locator_path(found[0])
