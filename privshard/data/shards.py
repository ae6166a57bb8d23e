"""The private copy: one canonical Parquet object per shard, read, searched, and rewritten without a subject."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from privshard.core.errors import InputError, VerificationError

if TYPE_CHECKING:
    import pyarrow as pa

    from privshard.store.objects import ObjectStore

DATA_DIRECTORY = "data"
EVAL_DIRECTORY = "data/eval"
PART = "part-0.parquet"
_ROWS_A_GROUP = 256


def shard_directory(shard: int) -> str:
    """Where the private copy keeps a shard.

    >>> shard_directory(7)
    'data/shard=007'
    """
    return f"{DATA_DIRECTORY}/shard={shard:03d}"


def part_path(directory: str) -> str:
    """The one object of a partition."""
    return f"{directory}/{PART}"


@dataclass(frozen=True)
class ShardRows:
    """The examples of one partition in canonical order: strictly ascending ids, whatever file they came from."""

    ids: tuple[str, ...] = ()
    images: tuple[bytes, ...] = field(default=(), repr=False)
    labels: tuple[str, ...] = field(default=(), repr=False)
    subjects: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (self.ids, self.images, self.labels, self.subjects)}
        if len(lengths) != 1:
            raise InputError(f"shard rows: expected columns of one length, got {sorted(lengths)}.")
        if any(left >= right for left, right in zip(self.ids, self.ids[1:], strict=False)):
            raise InputError("shard rows: expected strictly ascending ids.", remedy="Sort by id, drop duplicates.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_subjects(self) -> int:
        """How many different subjects there are."""
        return len(set(self.subjects))

    def without(self, subject: str) -> ShardRows:
        """The rows of everyone else, in the same order."""
        kept = [row for row, other in enumerate(self.subjects) if other != subject]
        return ShardRows(
            ids=tuple(self.ids[row] for row in kept),
            images=tuple(self.images[row] for row in kept),
            labels=tuple(self.labels[row] for row in kept),
            subjects=tuple(self.subjects[row] for row in kept),
        )


def encode_partition(rows: ShardRows) -> bytes:
    """The one Parquet encoding of `rows`: equal rows give equal bytes (for one version of pyarrow)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table([list(rows.ids), list(rows.images), list(rows.labels), list(rows.subjects)], schema=_schema())
    sink = io.BytesIO()
    pq.write_table(
        table, sink, row_group_size=_ROWS_A_GROUP, compression="none", use_dictionary=False, write_statistics=False
    )
    return sink.getvalue()


def write_partition(objects: ObjectStore, directory: str, *, rows: ShardRows) -> None:
    """Write a partition whole; without rows it is an empty file that still has its columns."""
    objects.write(part_path(directory), encode_partition(rows))


def read_partition(objects: ObjectStore, directory: str) -> ShardRows:
    """All rows of a partition. Raises VerificationError where the object is missing or isn't a partition."""
    columns = _read_columns(objects, part_path(directory), names=("id", "image", "label", "subject"))
    try:
        return ShardRows(
            ids=tuple(columns["id"]),
            images=tuple(columns["image"]),
            labels=tuple(columns["label"]),
            subjects=tuple(columns["subject"]),
        )
    except InputError as error:
        raise VerificationError(f"{part_path(directory)}: {error.message}", remedy=_RESTORE) from error


def partition_ids(objects: ObjectStore, directory: str) -> tuple[str, ...]:
    """The ids of a partition's rows, in order; nothing else of it is decoded."""
    return tuple(_read_columns(objects, part_path(directory), names=("id",))["id"])


def find_subject(objects: ObjectStore, directory: str, *, subject: str) -> int:
    """How many rows of a partition are about `subject`."""
    return _read_columns(objects, part_path(directory), names=("subject",))["subject"].count(subject)


def rewrite_without(objects: ObjectStore, directory: str, *, subject: str) -> int:
    """Take a subject out of a partition; returns how many rows went. Doing it again changes nothing.

    The object is replaced whole. What is then stored equals, byte for byte, what `ingest` writes from data that
    never held the subject, the last subject of a shard included.
    """
    if find_subject(objects, directory, subject=subject) == 0:
        return 0
    rows = read_partition(objects, directory)
    kept = rows.without(subject)
    write_partition(objects, directory, rows=kept)
    return len(rows) - len(kept)


def scan_for_subjects(objects: ObjectStore, *, matches: Callable[[str], bool]) -> dict[str, int]:
    """Every Parquet object below `data/` that holds a subject for which `matches` is true, with its row count.

    Reads what is really stored, expected or not; `{}` says that no such subject is left. `matches` takes the raw
    subject, so a caller that only kept a keyed hash hashes inside.
    """
    found: dict[str, int] = {}
    for path in sorted(objects.list(DATA_DIRECTORY)):
        if path.endswith(".parquet"):
            subjects = _read_columns(objects, path, names=("subject",))["subject"]
            known = {subject: matches(subject) for subject in set(subjects)}
            if count := sum(known[subject] for subject in subjects):
                found[path] = count
    return found


_RESTORE = "Restore the workspace from a backup and run `privshard verify`."


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("image", pa.binary(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("subject", pa.string(), nullable=False),
        ]
    )


def _read_columns(objects: ObjectStore, path: str, *, names: tuple[str, ...]) -> dict[str, list]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = objects.read(path)
    try:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            if not file.schema_arrow.equals(_schema()):
                raise VerificationError(
                    f"{path}: expected the columns {_schema().names}, got {file.schema_arrow.names}.", remedy=_RESTORE
                )
            table = file.read(columns=list(names), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise VerificationError(f"{path}: expected readable Parquet, got a damaged object.", remedy=_RESTORE) from error
    return {name: table.column(name).to_pylist() for name in names}
