"""What an edit is asked for: images with the labels that they are to get, checked against what is already known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from privshard.api.edit_target import Target
from privshard.core.digest import content_digest
from privshard.core.errors import InputError
from privshard.data.examples import subject_of_image
from privshard.data.images import decode
from privshard.store.layout import edit_private_path


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


def read_wanted(target: Target, images: Sequence[str], labels: Sequence[str], subjects: Sequence[str]) -> list[Wanted]:
    """Every image with its label and subject; InputError for what doesn't fit together, and for forgotten subjects."""
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
        gone = [item.path for item in found if subject_key(target, item) in suppressed]
        if gone:
            raise InputError(f"image: {', '.join(gone)}: its subject was forgotten and may not come back.")
    return found


def check_contradictions(target: Target, wanted: Sequence[Wanted]) -> None:
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


def subject_key(target: Target, item: Wanted) -> str:
    """What stands for a subject: its keyed hash in a workspace; beside a plain file, the image's own digest."""
    return item.subject if target.workspace is None else target.workspace.subject_hash(item.subject)
