"""What the checks of a workspace look at, read once and kept small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from privshard.core.errors import PrivshardError, VerificationError
from privshard.core.model import ComponentRecord
from privshard.core.partition import Partition
from privshard.data.shards import ShardRows, read_partition
from privshard.store.layout import MANIFEST
from privshard.store.views import ModelVersion
from privshard.store.workspace import Workspace
from privshard.unlearning.live import live_components


@dataclass(frozen=True)
class Finding:
    """What one check found: `problems` in plain words, none where all is well; then `fine` says what was seen."""

    problems: list[str]
    fine: str


@dataclass(frozen=True)
class PartitionFacts:
    """One partition without its images. shard: None for the held-out rows. The counts are of rows that are in
    another shard than their subject's hash names, that have another id than their content, or an unknown label."""

    shard: int | None
    ids: tuple[str, ...]
    labels: tuple[str, ...] = field(repr=False)
    num_misplaced: int
    num_changed: int
    num_unlabelled: int


@dataclass(frozen=True)
class Loaded:
    """One component without its tensors: its record, and name -> (type, shape)."""

    record: ComponentRecord
    kinds: Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Evidence:
    """A workspace under examination. What can't be read is kept as the error that says so."""

    workspace: Workspace
    num_shards: int
    classes: tuple[str, ...]

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """The ledger's facts."""
        return self.workspace.ledger.facts()

    @cached_property
    def model(self) -> ModelVersion:
        """The current model; VerificationError before the first."""
        model = self.workspace.ledger.current_model()
        if model is None:
            raise VerificationError(
                "There is no model yet: the first training was interrupted.", remedy="Finish it with `privshard train`."
            )
        return model

    @cached_property
    def live(self) -> frozenset[str]:
        """Components whose files have to be there."""
        return live_components(self.workspace.ledger)

    @cached_property
    def manifest(self) -> Mapping[str, Any] | None:
        """The manifest where its signature holds."""
        try:
            manifest = self.workspace.objects.read_json(MANIFEST)
        except PrivshardError:
            return None
        return manifest if isinstance(manifest, dict) and self.workspace.check_signature(manifest) else None

    @cached_property
    def partitions(self) -> Mapping[str, PartitionFacts | PrivshardError]:
        """Directory -> its rows, for every shard and the held-out rows; one partition is in memory at a time."""
        partition = Partition(self.workspace.secrets.partition_key, self.num_shards)
        shards: dict[str, int | None] = {self.workspace.shard_dir(shard): shard for shard in range(self.num_shards)}
        return {name: self._read(name, shard, partition) for name, shard in {**shards, self.eval_dir: None}.items()}

    @property
    def readable(self) -> Mapping[str, PartitionFacts]:
        """The partitions that could be read."""
        return {name: facts for name, facts in self.partitions.items() if isinstance(facts, PartitionFacts)}

    @property
    def eval_dir(self) -> str:
        """Where the held-out rows lie."""
        return self.workspace.eval_dir()

    @cached_property
    def components(self) -> Mapping[str, Loaded | PrivshardError]:
        """The shard components of the current model; one is in memory at a time."""
        return {component: self._load(component) for component in self.model.composition.averaged}

    def _read(self, directory: str, shard: int | None, partition: Partition) -> PartitionFacts | PrivshardError:
        try:
            rows = read_partition(self.workspace.objects, directory)
        except PrivshardError as error:
            return error
        shard_of = {subject: partition.shard_of(subject) for subject in set(rows.subjects)}
        return PartitionFacts(
            shard=shard,
            ids=rows.ids,
            labels=rows.labels,
            num_misplaced=0 if shard is None else sum(shard_of[subject] != shard for subject in rows.subjects),
            num_changed=sum(identity != rows.ids[row] for row, identity in enumerate(self._identities(rows))),
            num_unlabelled=sum(label not in self.classes for label in rows.labels),
        )

    def _identities(self, rows: ShardRows) -> list[str]:
        """The ids that the rows' content gives."""
        columns = zip(rows.images, rows.labels, rows.subjects, strict=True)
        return [self.workspace.example_hash(image=image, label=label, subject=name) for image, label, name in columns]

    def _load(self, component: str) -> Loaded | PrivshardError:
        try:
            record, arrays = self.workspace.load_component(component)
        except PrivshardError as error:
            return error
        return Loaded(record, {name: (array.dtype.str, array.shape) for name, array in arrays.items()})
