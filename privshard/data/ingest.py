"""Make the private copy: every example validated, held out or sent to its shard, in canonical order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from privshard.core.errors import InputError
from privshard.core.partition import Partition
from privshard.data.examples import SourceRow, example_id, subject_of_image
from privshard.data.images import decode
from privshard.data.prefetch import ordered_map
from privshard.data.shards import DATA_DIRECTORY, EVAL_DIRECTORY, shard_directory, write_partition
from privshard.data.spill import EVAL, Spill, open_spill

if TYPE_CHECKING:
    from privshard.store.objects import ObjectStore


@dataclass(frozen=True)
class IngestReport:
    """What an ingest found. Every number is confidential: it is derived from private rows.

    num_duplicates: rows left out because the same row of the same subject is there. num_suppressed: rows left out
    because their subject was forgotten. shard_counts, shard_subject_counts: by shard; num_subjects: that train.
    """

    num_train_rows: int
    num_eval_rows: int
    num_duplicates: int
    num_suppressed: int
    num_subjects: int
    shard_counts: tuple[int, ...]
    shard_subject_counts: tuple[int, ...]


def ingest(
    rows: Iterable[SourceRow],
    *,
    objects: ObjectStore,
    partition: Partition,
    hashing_key: bytes,
    classes: tuple[str, ...],
    is_suppressed: Callable[[str], bool] = lambda _: False,
    spill_folder: Path | None = None,
    num_workers: int = 4,
    on_progress: Callable[[int], None] = lambda _: None,
) -> IngestReport:
    """Write `data/shard=…/part-0.parquet` for every shard and `data/eval/part-0.parquet`.

    An empty shard gets an empty file: that it is empty is private. Where a row goes depends on the keys and on
    its subject's rows alone, so taking another subject out of the source changes no other byte. A row whose split
    is not given is held out with its subject by the keyed tenth. Identical rows of one subject count once; where
    one of them is held out, that one stays.

    Every row is read and checked before the first object is written; a failure removes what was written, and
    what an interrupted ingest left below `data/` is replaced. The caller's ledger entry is the commit point. One
    partition is in memory at a time, the others wait in a private file below `spill_folder`.

    hashing_key: 16 to 64 secret bytes for the ids. classes: the public labels, at least one. is_suppressed: raw
    subject -> was it forgotten; such rows are left out unchecked. on_progress: rows read so far.

    Raises InputError for an unreadable image or a label outside `classes`, naming file and row.
    """
    if not classes or len(set(classes)) != len(classes):
        raise InputError(f"data.classes: expected at least one class, each once, got {list(classes)}.")
    if not 16 <= len(hashing_key) <= 64:
        raise InputError(f"hashing key: expected 16 to 64 secret bytes, got {len(hashing_key)}.")
    place = partial(_place, partition=partition, hashing_key=hashing_key, classes=frozenset(classes))
    with open_spill(spill_folder) as spill:
        counts = _Skipped()
        owned = _with_subjects(rows, is_suppressed=is_suppressed, skipped=counts, on_progress=on_progress)
        for part, row in ordered_map(place, owned, num_workers=num_workers):
            if not spill.add(part, id=row.id, image=row.image, label=row.label, subject=row.subject):
                counts.num_duplicates += 1
        counts.num_duplicates += spill.drop_trained_copies()
        return _write(spill, objects, num_shards=partition.num_shards, skipped=counts)


@dataclass
class _Skipped:
    """Counts of one running ingest."""

    num_duplicates: int = 0
    num_suppressed: int = 0


@dataclass(frozen=True)
class _Example:
    id: str
    image: bytes
    label: str
    subject: str


def _with_subjects(
    rows: Iterable[SourceRow],
    *,
    is_suppressed: Callable[[str], bool],
    skipped: _Skipped,
    on_progress: Callable[[int], None],
) -> Iterator[tuple[SourceRow, str]]:
    """The rows that may be ingested, each with its subject."""
    for done, row in enumerate(rows, start=1):
        subject = row.subject or subject_of_image(row.image)
        if is_suppressed(subject):
            skipped.num_suppressed += 1
        else:
            yield row, subject
        on_progress(done)


def _place(
    owned: tuple[SourceRow, str], *, partition: Partition, hashing_key: bytes, classes: frozenset[str]
) -> tuple[int, _Example]:
    """Check one row; the partition it belongs to and the example it is. Runs on a thread."""
    row, subject = owned
    if row.label not in classes:
        shown = ", ".join(repr(name) for name in sorted(classes)[:20]) + (", …" if len(classes) > 20 else "")
        raise InputError(
            f"{row.where}: expected a label of the {len(classes)} classes {shown}; got {row.label!r}.",
            remedy="Correct the row, or add the class to data.classes.",
        )
    try:
        decode(row.image)
    except InputError as error:
        raise InputError(f"{row.where}: {error.message}", remedy=error.remedy) from error
    held_out = row.split == "eval" or (row.split is None and partition.held_out(subject))
    identity = example_id(hashing_key, image=row.image, label=row.label, subject=subject)
    example = _Example(id=identity, image=row.image, label=row.label, subject=subject)
    return (EVAL if held_out else partition.shard_of(subject)), example


def _write(spill: Spill, objects: ObjectStore, *, num_shards: int, skipped: _Skipped) -> IngestReport:
    """Write all partitions, or none."""
    objects.delete_tree(DATA_DIRECTORY)
    try:
        held_out = spill.partition(EVAL)
        num_eval_rows = len(held_out)
        write_partition(objects, EVAL_DIRECTORY, rows=held_out)
        del held_out
        sizes = []
        for shard in range(num_shards):
            rows = spill.partition(shard)
            write_partition(objects, shard_directory(shard), rows=rows)
            sizes.append((len(rows), rows.num_subjects))
    except BaseException:
        objects.delete_tree(DATA_DIRECTORY)
        raise
    shard_counts, shard_subject_counts = zip(*sizes, strict=True)
    return IngestReport(
        num_train_rows=sum(shard_counts),
        num_eval_rows=num_eval_rows,
        num_duplicates=skipped.num_duplicates,
        num_suppressed=skipped.num_suppressed,
        num_subjects=sum(shard_subject_counts),
        shard_counts=shard_counts,
        shard_subject_counts=shard_subject_counts,
    )
