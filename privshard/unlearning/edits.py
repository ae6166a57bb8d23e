"""What a removal does to edits and locators: which of them go, which stay, and why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from privshard.core.edit import EditRecord
from privshard.core.errors import VerificationError
from privshard.core.privacy import PrivacySpend
from privshard.core.removal import PlannedAction
from privshard.store.edits import active_locators, load_edit_record
from privshard.store.layout import edit_private_path, locator_private_path
from privshard.store.ledger import Ledger
from privshard.store.workspace import Workspace


@dataclass(frozen=True)
class Touched:
    """What a removal reaches beside shards. actions: edits to drop and locators to retire, with the reasons.

    about_subject: whether any of them was learnt from an image of the subject. bounded: edits that stay, though they
    were learnt while the shard's component was in the model: what they tell of it is bounded by its privacy alone.
    """

    actions: tuple[PlannedAction, ...] = ()
    about_subject: bool = False
    bounded: tuple[str, ...] = ()

    @property
    def edits(self) -> frozenset[str]:
        """The edits that go."""
        return frozenset(str(a.component) for a in self.actions if a.action == "drop_edit")

    @property
    def locators(self) -> frozenset[str]:
        """The locators that are retired."""
        return frozenset(str(a.component) for a in self.actions if a.action == "retire_locator")


NOTHING = Touched()


def touched(workspace: Workspace, subject_hash: str, *, leaving: str | None, private: bool) -> Touched:
    """The edits and locators that a subject's removal reaches.

    An edit goes where it was learnt from an image of the subject, where the locator that chose its neurons was trained
    on one, or where it was learnt in the presence of an edit that goes. A locator goes where it was trained on an
    image of the subject. leaving: the shard's component that is dropped or replaced. What was learnt on top of it goes
    too unless it was trained with differential privacy (`private`), which bounds what can have come through it.

    No model is built. A private file that can't be read counts as the subject's: erasure errs on the side of removal.
    """
    model = workspace.ledger.current_model()
    held = sorted(model.composition.added) if model else []
    records = {edit: _record(workspace, edit) for edit in held}
    actions: dict[str, PlannedAction] = {}
    about = False
    for digest in active_locators(workspace.ledger):
        side = _side_file(workspace, locator_private_path(digest))
        if side is None or subject_hash in side["subjects"]:
            about = about or side is not None
            reason = "it was trained on an image of the subject; train another with privshard edit train-locator"
            actions[digest] = PlannedAction(digest, "retire_locator", reason)
        elif not private and leaving is not None and leaving in side["components"]:
            reason = "it was trained on a model with the component that goes, which had no differential privacy"
            actions[digest] = PlannedAction(digest, "retire_locator", reason)
    bounded = []
    for edit in held:
        side, record = _side_file(workspace, edit_private_path(edit)), records[edit]
        if side is None or record is None or subject_hash in side["subjects"]:
            about = about or side is not None
            actions[edit] = PlannedAction(edit, "drop_edit", "it was learnt from an image of the subject")
        elif record.locator in actions:
            actions[edit] = PlannedAction(edit, "drop_edit", "its neurons were chosen by a locator that is retired")
        elif leaving is not None and leaving in record.components:
            if private:
                bounded.append(edit)
            else:
                reason = "it was learnt on a model with the component that goes, which had no differential privacy"
                actions[edit] = PlannedAction(edit, "drop_edit", reason)
    _close(actions, records)
    ordered = tuple(sorted(actions.values(), key=lambda action: (action.action, str(action.component))))
    return Touched(ordered, about, tuple(edit for edit in bounded if edit not in actions))


def is_private(ledger: Ledger, spend: PrivacySpend) -> bool:
    """Whether a shard's components bound what they reveal: trained with noise, and not from a seed for tests."""
    return spend.epsilon is not None and ledger.get("insecure_seed") is None


def dependents(workspace: Workspace, edits: Collection[str]) -> frozenset[str]:
    """These edits of the current model, and all that were learnt in their presence."""
    model = workspace.ledger.current_model()
    records = {edit: _record(workspace, edit) for edit in (model.composition.added if model else ())}
    actions = {edit: PlannedAction(edit, "drop_edit", "it was asked for") for edit in edits}
    _close(actions, records)
    return frozenset(actions)


def edit_actions(actions: Collection[PlannedAction]) -> tuple[PlannedAction, ...]:
    """Those of a plan's actions that are about edits and locators."""
    return tuple(action for action in actions if action.action in ("drop_edit", "retire_locator"))


def _close(actions: dict[str, PlannedAction], records: dict[str, EditRecord | None]) -> None:
    """Add the edits that were learnt in the presence of one that goes, until there is none left."""
    while True:
        more = [
            edit
            for edit, record in records.items()
            if edit not in actions and record is not None and not set(record.edits).isdisjoint(actions)
        ]
        if not more:
            return
        for edit in more:
            actions[edit] = PlannedAction(edit, "drop_edit", "it was learnt in the presence of an edit that goes")


def _record(workspace: Workspace, edit: str) -> EditRecord | None:
    try:
        return load_edit_record(workspace.objects, edit)
    except VerificationError:
        return None


def _side_file(workspace: Workspace, path: str) -> dict[str, Any] | None:
    """A private side file; None where it is missing or damaged."""
    try:
        value = workspace.objects.read_json(path)
    except VerificationError:
        return None
    whole = isinstance(value, dict) and {"subjects", "components"} <= value.keys()
    return value if whole else None
