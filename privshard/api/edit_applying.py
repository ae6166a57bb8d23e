"""`edit apply`: a model is wrong about an image; a few weights are changed, and what that did is measured."""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from privshard.api import evaluation, facts
from privshard.api.edit_editors import choose
from privshard.api.edit_learning import learn_edit
from privshard.api.edit_target import Target, open_target
from privshard.api.edit_wanted import Wanted, check_contradictions, read_wanted, subject_key
from privshard.core.edit import EditRecord
from privshard.core.errors import InputError
from privshard.core.jobs import OnProgress, Progress
from privshard.data.pictures import read_pictures
from privshard.data.shards import read_partition
from privshard.editing import sparse
from privshard.editing.measure import predictions, rate, sensitive
from privshard.editing.tail import Tail
from privshard.store.edits import edit_id, save_edit
from privshard.store.layout import edit_path, edit_private_path, eval_dir
from privshard.unlearning.clean_up import clean_up

NOTE = "Locality is measured on sensitive examples; in a workspace those are held-out rows, which are personal data."


def edit_apply(
    place: str,
    *,
    images: Sequence[str],
    labels: Sequence[str],
    subjects: Sequence[str] = (),
    editor: str | None = None,
    keep: float | None = None,
    locator: str | None = None,
    places: str | None = None,
    lr: float | None = None,
    steps: int = 100,
    unlabeled: str | None = None,
    sensitive_data: str | None = None,
    model: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Change a few weights so that every image gets its label; several images give one edit.

    place: a workspace, or with `model` (timm's name) a plain model file, beside which the edit is kept. subjects: whom
    the images are about, one each; workspaces only. sensitive_data: labelled pictures for locality; a workspace has its
    held-out rows. The status is "edited", "already_right" where nothing had to change, or "not_learnt" where the steps
    did not suffice: nothing is changed then.

    editor: what chooses the weights that may change.

    - "heads", the default: whole attention heads of up to three late blocks, by gradient. It was the best of ten on
      natural errors (jobs/benchmarks/README.md, "Where to edit").
    - "gradient": single neurons of feed-forward networks, or of whatever `places` name; the default where they name
      feed-forward networks.
    - "locator": neurons by a trained hypernetwork, named by `locator`; the default where one is given.
    - "rank-one": one key of one feed-forward network gets a new value, in closed form; for one image and a plain model
      with a class token. unlabeled: images (labels are not read) from which it learns what the other keys are.

    keep: the share of heads or neurons that may change; by default all heads, a quarter of the neurons. lr: of
    RMSprop; the defaults for plain models were chosen on the benchmark's validation groups.

    InputError for labels out of range, contradictions (one image, two labels), a `keep` that keeps nothing, options
    that the editor does not have, a locator of another base, and subjects who were forgotten.
    """
    started, tell = time.perf_counter(), on_progress or (lambda _: None)
    with open_target(place, model=model, write=model is None) as target:
        wanted = read_wanted(target, images, labels, subjects)
        check_contradictions(target, wanted)
        chosen = choose(target, editor=editor, locator=locator, places=places, keep=keep, lr=lr)
        if (chosen.editor == "rank-one") != (unlabeled is not None):
            raise InputError(
                "unlabeled: expected images for the editor rank-one, and for no other; got "
                f"{unlabeled or 'none'} for the editor {chosen.editor}.",
                remedy="--editor rank-one --unlabeled PATH: a folder or a Parquet file of images in general.",
            )
        tail = target.tail(chosen.places)
        now = target.with_edits(tail)
        tell(Progress("edit", None, "edit", 0, 3))
        tokens = target.tokens([item.content for item in wanted], tail)
        labels_B = torch.tensor([item.index for item in wanted], device=target.device)
        before_B = predictions(now, tokens, {})
        wrong = (before_B != labels_B).nonzero()[:, 0].tolist()
        if chosen.editor == "rank-one" and len(wrong) > 1:
            raise InputError(
                f"image: expected one for the editor rank-one, got {len(wrong)} that are wrong.",
                remedy="Edit them one after the other, or take another editor.",
            )
        found_by = chosen.locator.digest if chosen.locator else None
        report: dict[str, Any] = {
            "target": target.place, "editor": chosen.editor, "keep": chosen.keep, "locator": found_by,
            "places": ",".join(map(str, chosen.places)), "note": NOTE,
        }  # fmt: skip
        if not wrong:
            return report | _unchanged(target, "already_right", wanted, before_B, started)
        learning = time.perf_counter()
        found = learn_edit(
            target, tail, now, contents=[wanted[at].content for at in wrong], tokens=tokens[wrong],
            labels_B=labels_B[wrong], chosen=chosen, steps=steps, unlabeled=unlabeled,
        )  # fmt: skip
        learn_s = time.perf_counter() - learning
        tell(Progress("edit", None, "edit", 1, 3))
        if found is None:
            return report | _unchanged(target, "not_learnt", wanted, before_B, started)
        edit = sparse.sparsify({name: delta[0] for name, delta in found.moved.items()}, chosen.slots)
        arrays = sparse.to_arrays(edit)
        record = EditRecord(
            id=edit_id(arrays, base=target.base.digest, space=tail.space),
            base=target.base.digest,
            space=tail.space,
            locator=found_by,
            keep=chosen.keep,
            places=tuple(map(str, chosen.places)),
            components=target.components,
            edits=tuple(sorted(target.edits)) if found.beside else (),
            editor=chosen.editor,
        )
        after_B = predictions(now, tokens, found.moved)
        locality, num_sensitive = _locality(target, now, found.moved, sensitive_data)
        conflicts = _broken(target, now, found.moved)
        tell(Progress("edit", None, "edit", 2, 3))
        private = {
            "subjects": sorted({subject_key(target, item) for item in wanted}),
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
                "steps": found.steps,
                "learn_s": learn_s,
                "bytes": sum(array.nbytes for array in arrays.values()),
            },
            "elapsed_s": time.perf_counter() - started,
        }


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
