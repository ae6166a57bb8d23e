"""The workspace: one folder's objects, ledger and keys under one handle."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.core.digest import keyed_digest
from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.core.model import ComponentRecord
from privshard.store import components, layout, signing
from privshard.store.clock import require_clock
from privshard.store.database import LEDGER_ENV
from privshard.store.leased import LeasedObjects
from privshard.store.ledger import Ledger
from privshard.store.ledger_place import ledger_place
from privshard.store.lock import hold
from privshard.store.manifest import describe
from privshard.store.objects import ObjectStore
from privshard.store.probe import require_rights
from privshard.store.secrets import Secrets, insecure_secrets, load_secrets
from privshard.store.shared_disk import refuse_shared_disk

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Workspace:
    """A handle on a workspace; opening one reads its ledger's facts and keys, nothing else.

    root: folder or URI. objects: its files. ledger: what is committed; a file that the ledger does not name does
    not count. secrets: the keys, from outside the workspace.
    """

    root: str
    id: str
    objects: ObjectStore
    ledger: Ledger
    secrets: Secrets = field(repr=False)
    _holds: list[str] = field(default_factory=list, repr=False, compare=False)

    @staticmethod
    def create(
        root: str | os.PathLike[str],
        *,
        recipe_yaml: str,
        recipe_digest: str,
        insecure_seed: int | None = None,
        ledger: str | None = None,
    ) -> Workspace:
        """A workspace for this recipe: a new one, or the one that is there for the same recipe.

        It is held meanwhile, so of two processes that create one, one does and the other gets a BusyError; see
        `store.creation.created`, which also says what is refused.
        """
        from privshard.store.creation import created

        with created(
            root,
            recipe_yaml=recipe_yaml,
            recipe_digest=recipe_digest,
            insecure_seed=insecure_seed,
            ledger=ledger,
            is_begun=lambda _: True,
        ) as workspace:
            return workspace

    @staticmethod
    def open(root: str | os.PathLike[str], *, ledger: str | None = None) -> Workspace:
        """An existing workspace; InputError where there is none, ResourceError where its keys are missing."""
        objects = ObjectStore(root)
        place = ledger_place(objects, ledger)
        if not Ledger.exists(place):
            raise _none_at(objects)
        book = Ledger.open(place)
        if book.get("recipe_digest") is None:
            raise InputError(
                f"Expected a workspace at {objects.root}, found one whose creation is not over, or was interrupted.",
                remedy=f"Complete it with: privshard train --workspace {objects.root}",
            )
        objects = _objects(objects, book)
        _check_owner(objects, book)
        return Workspace(objects.root, book.workspace_id, objects, book, load_keys(book))

    def close(self) -> None:
        """Let go of the ledger."""
        self.ledger.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the workspace alone; what killed writers left half-written is deleted first.

        By a lock of the operating system where its ledger is a file (`store.lock`), by a lease in its database where
        that is a server (`store.lease`): then clocks and the store's rights are checked too. A second holder gets a
        BusyError that names the first.
        """
        with self._alone(), self.held():
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """For whoever has the lock or the lease already: what `hold` does inside of it."""
        self.objects.sweep()
        self._holds.append(self.root)
        try:
            yield
        finally:
            self._holds.pop()

    @property
    def is_held(self) -> bool:
        """Whether this handle holds the workspace."""
        return bool(self._holds)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not isinstance(self.objects, LeasedObjects):
            refuse_shared_disk(Path(self.root))
            if not Path(self.root).is_dir():
                raise _none_at(self.objects)  # it was taken back since it was opened
            with hold(self.root):
                yield
            return
        require_clock(self.ledger)
        with self.ledger.hold_lease(root=self.objects.address) as lease:
            if not self.objects.is_local:
                require_rights(ObjectStore(self.root))
            self.objects.hold_by(lease)
            try:
                yield
            finally:
                self.objects.hold_by(None)

    # Paths, relative to the root: for `objects`

    shard_dir = staticmethod(layout.shard_dir)
    eval_dir = staticmethod(layout.eval_dir)
    cache_dir = staticmethod(layout.cache_dir)
    eval_cache_dir = staticmethod(layout.eval_cache_dir)
    component_path = staticmethod(layout.component_path)
    component_record_path = staticmethod(layout.component_record_path)
    parameters_path = staticmethod(layout.parameters_path)
    curvature_path = staticmethod(layout.curvature_path)
    private_path = staticmethod(layout.private_path)
    model_path = staticmethod(layout.model_path)
    receipt_path = staticmethod(layout.receipt_path)
    report_path = staticmethod(layout.report_path)

    # Components

    def save_component(
        self,
        record: ComponentRecord,
        arrays: Mapping[str, np.ndarray],
        *,
        private: Mapping[str, Any],
        parameters: Mapping[str, np.ndarray] | None = None,
        curvature: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write a component's files; see `store.components.save_component`."""
        components.save_component(
            self.objects, record, arrays, private=private, parameters=parameters, curvature=curvature
        )

    def load_component(self, component: str) -> tuple[ComponentRecord, dict[str, np.ndarray]]:
        """A component's record and verified tensors; its space is `record.space`."""
        return components.load_component(self.objects, component)

    def load_parameters(self, component: str) -> dict[str, np.ndarray]:
        """The verified parameters that a component's tensors are a function of; empty where it has none."""
        return components.load_parameters(self.objects, component)

    def load_curvature(self, component: str) -> dict[str, np.ndarray]:
        """The verified curvature around a component; empty where it has none."""
        return components.load_curvature(self.objects, component)

    def load_record(self, component: str) -> ComponentRecord:
        """A component's public record alone."""
        return components.load_record(self.objects, component)

    def component_ids(self) -> list[str]:
        """Ids of which any file is there; which of them count is for the ledger to say."""
        return components.component_ids(self.objects)

    def delete_component(self, component: str) -> None:
        """Delete a component's files; nothing happens where there are none."""
        components.delete_component(self.objects, component)

    # People, by keyed hash

    def subject_hash(self, subject: str) -> str:
        """What stands for a subject outside `data/`."""
        return keyed_digest(self.secrets.hashing_key, "privshard.subj", subject)

    def example_hash(self, *, image: bytes, label: str, subject: str) -> str:
        """What stands for an example outside `data/`: the `data.examples.example_id` under this workspace's key."""
        return keyed_digest(self.secrets.hashing_key, "privshard.exampl", image, label, subject)

    # Signed documents

    def sign(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """`value` with its "signature" under this workspace's key."""
        return signing.sign(self.secrets.signing_key, value)

    def check_signature(self, value: Mapping[str, Any]) -> bool:
        """Whether this workspace signed `value` as it is."""
        return signing.check_signature(self.secrets.signing_key, value)

    def save_receipt(self, request: str, receipt: Mapping[str, Any]) -> dict[str, Any]:
        """Sign and write a removal's receipt; the signed receipt."""
        signed = self.sign(receipt)
        self.objects.write_json(layout.receipt_path(request), signed)
        return signed

    def load_receipt(self, request: str) -> dict[str, Any]:
        """A removal's receipt; VerificationError where its signature does not hold."""
        receipt = self.objects.read_json(layout.receipt_path(request))
        if not isinstance(receipt, dict) or not self.check_signature(receipt):
            raise VerificationError(
                f"Receipt {request}: expected a receipt signed by this workspace, got a changed or foreign one.",
                remedy="The ledger keeps the same receipt; compare and restore it.",
            )
        return receipt

    def write_manifest(self) -> dict[str, Any]:
        """Write `manifest.json` from the ledger, signed; what was written."""
        manifest = self.sign(describe(self.ledger))
        self.objects.write_json(layout.MANIFEST, manifest)
        return manifest

    def verify_ledger(self) -> list[str]:
        """Problems of the ledger's chain, anchored at the manifest's head where its signature holds."""
        manifest = self.objects.read_json(layout.MANIFEST) if self.objects.exists(layout.MANIFEST) else None
        if not isinstance(manifest, dict) or not self.check_signature(manifest):
            problem = "manifest.json is missing, or was changed since it was written: its signature does not hold."
            return [problem, *self.ledger.verify_chain()]
        return self.ledger.verify_chain(anchor=(manifest["ledger"]["entries"], manifest["ledger"]["head"]))


def _objects(objects: ObjectStore, ledger: Ledger) -> ObjectStore:
    """The objects of a workspace: where its ledger is a server, another may take over while a write is on its way."""
    return LeasedObjects(objects.root, ledger=ledger) if ledger.is_shared else objects


def _none_at(objects: ObjectStore) -> InputError:
    return InputError(
        f"Expected a workspace at {objects.root}, found none.",
        remedy=f"Make one with: privshard train --workspace {objects.root}",
    )


def _check_owner(objects: ObjectStore, ledger: Ledger) -> None:
    """InputError where a database is the ledger of another workspace than this folder's manifest names."""
    if objects.is_local and objects.exists(layout.LEDGER):
        return
    try:
        manifest = objects.read_json(layout.MANIFEST)
    except VerificationError:  # missing or damaged, which is for `verify` to say
        return
    owner = manifest.get("workspace") if isinstance(manifest, dict) else None
    if isinstance(owner, str) and owner != ledger.workspace_id:
        raise InputError(
            f"Workspace {objects.root}: expected the ledger of workspace {owner}, got that of {ledger.workspace_id}.",
            remedy=f"Correct {LEDGER_ENV}, or {layout.LEDGER_URL} in the workspace.",
        )


def load_keys(ledger: Ledger) -> Secrets:
    """The keys of a workspace, checked to be those it was made with."""
    seed = ledger.get("insecure_seed")
    keys = load_secrets(ledger.workspace_id) if seed is None else insecure_secrets(ledger.workspace_id, seed)
    if keys.fingerprint != ledger.get("keys"):
        raise ResourceError(
            f"Expected the keys that workspace {ledger.workspace_id} was made with, got other ones.",
            remedy="Restore its keys.json: under other keys subjects would change shards.",
        )
    return keys
