"""What one example is: a row as it was read, the subject it is about, and its keyed id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from privshard.core.digest import keyed_digest
from privshard.data.schema import Split

_PURPOSE = "privshard.example"[:16]


@dataclass(frozen=True)
class SourceRow:
    """One row of a source, before it is anyone's.

    image: the encoded file. subject: None where the row names nobody. split: None leaves the choice to the keyed
    tenth. source, row: the file and the row in it, counted from 0, for error messages.
    """

    image: bytes = field(repr=False)
    label: str
    subject: str | None = field(default=None, repr=False)
    split: Split | None = None
    source: str = ""
    row: int = 0

    @property
    def where(self) -> str:
        """File and row, for people."""
        return f"{self.source}, row {self.row}"


def subject_of_image(image: bytes) -> str:
    """The subject of a row that names none: the row itself, by "image:" and the SHA-256 of its encoded image.

    No key enters, so whoever holds the image file can name the subject and ask for its removal.

    >>> subject_of_image(b"")[:18]
    'image:e3b0c44298fc'
    """
    return "image:" + hashlib.sha256(image).hexdigest()


def example_id(key: bytes, *, image: bytes, label: str, subject: str) -> str:
    """The keyed id of an example: what stands for it outside `data/`, and what orders the rows of a shard.

    Equal rows of one subject have one id, so they count once; without `key` an id cannot be traced to an image.
    """
    return keyed_digest(key, _PURPOSE, image, label, subject)
