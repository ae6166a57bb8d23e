"""Checks of edits and locators: those that count are whole and of nobody forgotten, and no others are left."""

from __future__ import annotations

from base64 import b64decode
from pathlib import PurePosixPath

from privshard.core.digest import content_digest
from privshard.core.errors import PrivshardError
from privshard.store.edits import active_locators, load_edit
from privshard.store.layout import EDITS, LOCATORS, edit_private_path, locator_path, locator_private_path
from privshard.store.tensors import load_tensors
from privshard.unlearning.evidence import Evidence, Finding


def edits(evidence: Evidence) -> Finding:
    """Every edit of the model is whole, of the model's base, learnt from the images it keeps, of nobody forgotten."""
    workspace, model, problems = evidence.workspace, evidence.model, []
    suppressed = workspace.ledger.suppressed()
    for edit in sorted(model.composition.added):
        try:
            record, _, _ = load_edit(workspace.objects, edit)
            side = workspace.objects.read_json(edit_private_path(edit))
            subjects, images = set(side["subjects"]), side["images"]
            changed = [
                at for at, item in enumerate(images) if content_digest(b64decode(item["content"])) != item["digest"]
            ]
        except PrivshardError as error:
            problems.append(error.message)
            continue
        except (KeyError, TypeError, ValueError):
            problems.append(f"{edit_private_path(edit)} is not an edit's private file.")
            continue
        if record.base != model.composition.base:
            problems.append(f"Edit {edit}: its record says base {record.base}, the model {model.composition.base}.")
        if changed:
            problems.append(f"{edit_private_path(edit)}: {len(changed)} image(s) are not what they were.")
        if subjects & suppressed:
            problems.append(f"Edit {edit} was learnt from an image of a forgotten subject.")
        missing = sorted(set(record.edits) - model.composition.added)
        if missing:
            problems.append(f"Edit {edit} was learnt in the presence of edits that are gone: {', '.join(missing)}.")
    return Finding(problems, f"{len(model.composition.added)} edit(s), whole, of nobody who was forgotten.")


def locators(evidence: Evidence) -> Finding:
    """Every active locator is whole, and was trained on no image of a forgotten subject."""
    workspace, problems = evidence.workspace, []
    suppressed, active = workspace.ledger.suppressed(), active_locators(workspace.ledger)
    for digest in active:
        try:
            _, header = load_tensors(workspace.objects, locator_path(digest))
            subjects = set(workspace.objects.read_json(locator_private_path(digest))["subjects"])
        except PrivshardError as error:
            problems.append(error.message)
            continue
        except (KeyError, TypeError):
            problems.append(f"{locator_private_path(digest)} is not a locator's private file.")
            continue
        if (header.get("digest"), header.get("base")) != (digest, evidence.model.composition.base):
            problems.append(f"Locator {digest}: its file says another digest or base.")
        if subjects & suppressed:
            problems.append(f"Locator {digest} was trained on an image of a forgotten subject.")
    return Finding(problems, f"{len(active)} locator(s), whole, trained on nobody who was forgotten.")


def leftover_edits(evidence: Evidence) -> Finding:
    """No file of an edit that was taken out, of a retired locator, or of a locator's unfinished training is left."""
    workspace = evidence.workspace
    held = evidence.model.composition.added | set(active_locators(workspace.ledger))
    paths = [*workspace.objects.list(EDITS), *workspace.objects.list(LOCATORS)]
    left = [path for path in paths if PurePosixPath(path).stem not in held]
    return Finding([f"{path} belongs to no edit or locator that counts." for path in left], "None is left.")
