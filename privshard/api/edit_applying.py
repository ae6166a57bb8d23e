"""`edit apply`: a model is wrong about an image; a few neurons are changed, and what that did is measured."""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privshard.api import evaluation, facts
from privshard.api.edit_locators import load_locator
from privshard.api.edit_target import Target, open_target
from privshard.core.digest import content_digest
from privshard.core.edit import EditRecord
from privshard.core.errors import InputError
from privshard.core.jobs import OnProgress, Progress
from privshard.data.examples import subject_of_image
from privshard.data.images import decode
from privshard.data.pictures import read_pictures
from privshard.data.shards import read_partition
from privshard.editing import sparse
from privshard.editing.learn import LearnOptions, Learnt, learn
from privshard.editing.locator import Locator
from privshard.editing.masks import gradient_scores, keep_top, num_kept, shared
from privshard.editing.measure import predictions, rate, sensitive
from privshard.editing.places import Slot, slots_of
from privshard.editing.tail import Tail, features
from privshard.store.edits import edit_id, save_edit
from privshard.store.layout import edit_path, edit_private_path, eval_dir
from privshard.unlearning.clean_up import clean_up

KEEP = 0.25
LR = {"weight": 1e-4, "tangent": 1e-3}
NOTE = "Locality is measured on sensitive examples; in a workspace those are held-out rows, which are personal data."


@dataclass(frozen=True)
class Wanted:
    """One image and the class that it is to get. subject: whom it is about; the image itself where nobody is named."""

    path: str
    content: bytes
    label: str
    index: int
    subject: str

    @property
    def digest(self) -> str:
        """Of the encoded image."""
        return content_digest(self.content)


def edit_apply(
    place: str,
    *,
    images: Sequence[str],
    labels: Sequence[str],
    subjects: Sequence[str] = (),
    keep: float = KEEP,
    locator: str | None = None,
    places: str | None = None,
    lr: float | None = None,
    steps: int = 100,
    sensitive_data: str | None = None,
    model: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Change a few neurons so that every image gets its label; several images give one edit.

    place: a workspace, or with `model` (timm's name) a plain model file, beside which the edit is kept. subjects: whom
    the images are about, one each; workspaces only. keep: the share of neurons that may change. locator: what chooses
    them; without one, the gradient does. sensitive_data: labelled pictures for locality; a workspace has its held-out
    rows. The status is "edited", "already_right" where nothing had to change, or "not_learnt" where the steps did not
    suffice: nothing is changed then.

    InputError for labels out of range, contradictions (one image, two labels), a `keep` that keeps nothing, a
    locator of another base, and subjects who were forgotten.
    """
    started, tell = time.perf_counter(), on_progress or (lambda _: None)
    with open_target(place, model=model, write=model is None) as target:
        wanted = _wanted(target, images, labels, subjects)
        _check_contradictions(target, wanted)
        found = None if locator is None else load_locator(target, locator)
        if found is not None and places is not None:
            raise InputError("places: a locator brings its own; give one of the two.")
        chosen = found.places if found else target.places(places)
        slots = slots_of(target.base.view, chosen)
        tail = target.tail(chosen)
        now = target.with_edits(tail)
        tell(Progress("edit", None, "edit", 0, 3))
        tokens = target.tokens([item.content for item in wanted], tail)
        labels_B = torch.tensor([item.index for item in wanted], device=target.device)
        before_B = predictions(now, tokens, {})
        wrong_B = before_B != labels_B
        num_kept(keep, slots)
        options = LearnOptions(lr=LR[tail.space] if lr is None else lr, steps=steps)
        report: dict[str, Any] = {
            "target": target.place, "keep": keep, "locator": found.digest if found else None,
            "places": ",".join(map(str, chosen)), "note": NOTE,
        }  # fmt: skip
        if not bool(wrong_B.any()):
            return report | _unchanged(target, "already_right", wanted, before_B, started)
        masks = _masks(tail, tokens[wrong_B], labels_B[wrong_B], found, keep, slots)
        learning = time.perf_counter()
        learnt, beside = _learn(tail, now, tokens[wrong_B], labels_B[wrong_B], masks, slots, options)
        learn_s = time.perf_counter() - learning
        tell(Progress("edit", None, "edit", 1, 3))
        if learnt is None:
            return report | _unchanged(target, "not_learnt", wanted, before_B, started)
        edit = sparse.sparsify({name: delta[0] for name, delta in learnt.moved.items()}, slots)
        arrays = sparse.to_arrays(edit)
        record = EditRecord(
            id=edit_id(arrays, base=target.base.digest, space=tail.space),
            base=target.base.digest,
            space=tail.space,
            locator=found.digest if found else None,
            keep=keep,
            places=tuple(map(str, chosen)),
            components=target.components,
            edits=tuple(sorted(target.edits)) if beside else (),
        )
        after_B = predictions(now, tokens, learnt.moved)
        locality, num_sensitive = _locality(target, now, learnt.moved, sensitive_data)
        conflicts = _broken(target, now, learnt.moved)
        tell(Progress("edit", None, "edit", 2, 3))
        private = {
            "subjects": sorted({_hash(target, item) for item in wanted}),
            "components": list(target.components),
            "images": [
                {"digest": item.digest, "label": item.label, "content": b64encode(item.content).decode()}
                for item in wanted
            ],
        }
        save_edit(target.store, record, arrays, header=sparse.to_header(edit, record), private=private)
        versions = _commit(target, record.id, tell)
        tell(Progress("edit", None, "edit", 3, 3))
        return {
            **report,
            "status": "edited",
            "edit": record.id,
            "file": edit_path(record.id),
            "space": record.space,
            "learnt_beside": list(record.edits),
            **versions,
            "images": _images(target, wanted, before_B, after_B),
            "success": rate(after_B == labels_B),
            "locality": locality,
            "num_sensitive": num_sensitive,
            "conflicts": conflicts,
            "cost": {
                "num_weights": sparse.num_weights(edit),
                "num_neurons": sum(len(slot.index_K) for slot in edit.values()),
                "steps": int(learnt.steps_B.max()),
                "learn_s": learn_s,
                "bytes": sum(array.nbytes for array in arrays.values()),
            },
            "elapsed_s": time.perf_counter() - started,
        }


def _wanted(target: Target, images: Sequence[str], labels: Sequence[str], subjects: Sequence[str]) -> list[Wanted]:
    if not images or len(images) != len(labels):
        raise InputError(f"expected one label for every image, got {len(images)} image(s) and {len(labels)} label(s).")
    if subjects and len(subjects) != len(images):
        raise InputError(f"subject: expected one for every image or none, got {len(subjects)} for {len(images)}.")
    if subjects and target.workspace is None:
        raise InputError("subject: only a workspace knows people, got a plain model.", remedy="Leave --subject out.")
    found = []
    for at, (path, label) in enumerate(zip(images, labels, strict=True)):
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"image: expected a readable file, got {path} ({error.strerror}).") from error
        decode(content)
        subject = subjects[at] if subjects else subject_of_image(content)
        found.append(Wanted(str(path), content, label, target.class_of(label), subject))
    if target.workspace is not None:
        suppressed = target.workspace.ledger.suppressed()
        gone = [item.path for item in found if _hash(target, item) in suppressed]
        if gone:
            raise InputError(f"image: {', '.join(gone)}: its subject was forgotten and may not come back.")
    return found


def _check_contradictions(target: Target, wanted: Sequence[Wanted]) -> None:
    """InputError where an image is to get two labels, among these or beside an edit in effect."""
    asked: dict[str, str] = {}
    for item in wanted:
        if asked.setdefault(item.digest, item.label) != item.label:
            raise InputError(
                f"contradictory edits: {item.path} is to be {asked[item.digest]} and {item.label} at once.",
                remedy="Decide for one label.",
            )
    for edit in sorted(target.edits):
        for image in target.store.read_json(edit_private_path(edit))["images"]:
            if asked.get(image["digest"], image["label"]) != image["label"]:
                raise InputError(
                    f"contradictory edits: edit {edit[:12]} made the same image {image['label']}, now it is to be "
                    f"{asked[image['digest']]}.",
                    remedy=f"Take that edit out first: privshard edit revert {target.place} --edit {edit[:12]}",
                )


def _masks(
    tail: Tail, tokens: Tensor, labels_B: Tensor, locator: Locator | None, keep: float, slots: Sequence[Slot]
) -> dict[str, Tensor]:
    """One mask for all images, from a locator's scores or from the gradient."""
    if locator is None:
        scores = gradient_scores(tail, tokens, labels_B, slots)
    else:
        scores = locator.scores(features(tail.view, tokens, first_block=tail.first_block))
    return keep_top(shared(scores), keep, slots)


def _learn(
    tail: Tail,
    now: Tail,
    tokens: Tensor,
    labels_B: Tensor,
    masks: dict[str, Tensor],
    slots: Sequence[Slot],
    options: LearnOptions,
) -> tuple[Learnt | None, bool]:
    """The edit, and whether it had to be learnt in the presence of those in effect.

    First it is learnt on the components alone, so that it depends on no other edit. Only where it would not hold
    beside them is it learnt again with them; then it goes when they go. None where neither makes all images right.
    """
    for model, beside in ((tail, False), (now, True)) if now is not tail else ((tail, False),):
        learnt = learn(model, tokens, labels_B, masks, slots, options=options, together=True)
        moves = any(bool(delta.any()) for delta in learnt.moved.values())
        if moves and bool((predictions(now, tokens, learnt.moved) == labels_B).all()):
            return learnt, beside
    return None, False


def _locality(
    target: Target, now: Tail, moved: dict[str, Tensor], sensitive_data: str | None
) -> tuple[float | None, int]:
    """The share of sensitive examples whose prediction stays, and how many there are; None of none."""
    if sensitive_data is not None:
        rows = [(row.image, target.class_of(row.label)) for row in read_pictures(sensitive_data)]
    elif target.workspace is not None:
        held_out = read_partition(target.store, eval_dir())
        rows = [(image, target.class_of(label)) for image, label in zip(held_out.images, held_out.labels, strict=True)]
    else:
        rows = []
    kept = total = 0
    for start in range(0, len(rows), target.flags.micro_batch):
        part = rows[start : start + target.flags.micro_batch]
        tokens = target.tokens([image for image, _ in part], now)
        labels_B = torch.tensor([index for _, index in part], device=target.device)
        with torch.no_grad():
            logits_BC = now.logits(tokens, {})
        chosen_B = sensitive(logits_BC, labels_B)
        if bool(chosen_B.any()):
            same_B = predictions(now, tokens[chosen_B], moved) == logits_BC[chosen_B].argmax(dim=1)
            kept, total = kept + int(same_B.sum()), total + len(same_B)
    return (kept / total if total else None), total


def _broken(target: Target, now: Tail, moved: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The edits in effect whose images were right and no longer are, with the share of neurons in common."""
    found = []
    for edit in sorted(target.edits):
        side = target.store.read_json(edit_private_path(edit))["images"]
        tokens = target.tokens([b64decode(image["content"]) for image in side], now)
        labels_B = torch.tensor([target.class_of(image["label"]) for image in side], device=target.device)
        before_B = predictions(now, tokens, {}) == labels_B
        after_B = predictions(now, tokens, moved) == labels_B
        if bool((before_B & ~after_B).any()):
            found.append({"edit": edit, "images_lost": int((before_B & ~after_B).sum())})
    return found


def _commit(target: Target, edit: str, tell: OnProgress) -> dict[str, Any]:
    """In a workspace, the next model version holds the edit; beside a plain file, the edit's record is what counts."""
    workspace, setup, model = target.workspace, target.setup, target.model
    if workspace is None or setup is None or model is None:
        return {"model_before": None, "model_after": None, "metrics_before": None, "metrics_after": None,
                "statement": None}  # fmt: skip
    after = model.composition.adding(edit)
    cache = evaluation.refresh(
        workspace, setup, components=list(after.components), flags=target.flags, base_state=None, on_progress=tell
    )
    metrics = evaluation.measure(cache, after, setup.classes)
    version = workspace.ledger.add_model(after, reason=f"edit {edit}", metrics=metrics)
    clean_up(workspace)
    return {
        "model_before": facts.version_name(model.version),
        "model_after": facts.version_name(version),
        "metrics_before": dict(model.metrics) if model.metrics else None,
        "metrics_after": metrics,
        "statement": facts.privacy_report(workspace, setup)["statement"],
    }


def _unchanged(
    target: Target, status: str, wanted: Sequence[Wanted], before_B: Tensor, started: float
) -> dict[str, Any]:
    version = facts.version_name(target.model.version) if target.model else None
    return {
        "status": status,
        "edit": None,
        "model_before": version,
        "model_after": version,
        "images": _images(target, wanted, before_B, before_B),
        "elapsed_s": time.perf_counter() - started,
    }


def _images(target: Target, wanted: Sequence[Wanted], before_B: Tensor, after_B: Tensor) -> list[dict[str, Any]]:
    return [
        {"image": item.path, "label": item.label, "before": target.classes[before], "after": target.classes[after]}
        for item, before, after in zip(wanted, before_B.tolist(), after_B.tolist(), strict=True)
    ]


def _hash(target: Target, item: Wanted) -> str:
    """What stands for a subject: its keyed hash in a workspace; beside a plain file, the image's own digest."""
    return item.subject if target.workspace is None else target.workspace.subject_hash(item.subject)
