"""A tiny trained workspace without torch: real partitions, ledger and files, components that a hash of rows makes."""

from __future__ import annotations

import json
import shutil
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privshard.core.digest import content_digest
from privshard.core.edit import EditRecord
from privshard.core.errors import BudgetError
from privshard.core.model import ComponentRecord, Composition
from privshard.core.partition import Partition
from privshard.core.privacy import MechanismPlan, PrivacySpend
from privshard.core.removal import RemovalPlan, RemovalRequest
from privshard.data.shards import ShardRows, read_partition, write_partition
from privshard.store.components import component_id
from privshard.store.edits import edit_id, save_edit, save_locator
from privshard.store.layout import constants_path
from privshard.store.rows import RowKind, writing
from privshard.store.workspace import Workspace
from privshard.unlearning import eval_cache
from privshard.unlearning.cascade import execute, pending
from privshard.unlearning.clean_up import clean_up
from privshard.unlearning.edits import is_private, touched
from privshard.unlearning.eval_cache import EvalCache
from privshard.unlearning.live import component_of
from privshard.unlearning.model_files import write_model
from privshard.unlearning.plan import plan_removal
from privshard.unlearning.presence import find
from privshard.unlearning.verify import checks

BASE = "b" * 64
CLASSES = ("cat", "dog", "eel")
NUM_SHARDS = 3
SHAPES = {"head.bias": (3,), "head.weight": (3, 4)}


@dataclass
class World:
    """A workspace and the verbs that the layers above would use on it. `budget`: attempts that a shard admits."""

    root: Path
    workspace: Workspace
    budget: int = 3
    trained: list[int] = field(default_factory=list)
    statements: list[Composition] = field(default_factory=list)

    @property
    def partition(self) -> Partition:
        return Partition(self.workspace.secrets.partition_key, NUM_SHARDS)

    @property
    def composition(self) -> Composition:
        model = self.workspace.ledger.current_model()
        assert model is not None
        return model.composition

    def rows(self, shard: int | None) -> ShardRows:
        place = self.workspace.eval_dir() if shard is None else self.workspace.shard_dir(shard)
        return read_partition(self.workspace.objects, place)

    def component(self, shard: int) -> str | None:
        return component_of(self.workspace.ledger, shard)

    def reopened(self) -> World:
        """The same folder through a new handle, as after a kill."""
        self.workspace.close()
        return World(self.root, Workspace.open(self.root), budget=self.budget)

    def make_rows(self, *people: tuple[str, str]) -> ShardRows:
        """A row for each (subject, label), in canonical order."""
        rows = []
        for number, (subject, label) in enumerate(people):
            image = f"<image {number} of {subject}>".encode()
            identity = self.workspace.example_hash(image=image, label=label, subject=subject)
            rows.append((identity, image, label, subject))
        return ShardRows(*zip(*sorted(rows), strict=True)) if rows else ShardRows()

    def plan_of_training(self) -> MechanismPlan:
        return MechanismPlan("subject", 0.5, 3, 1.0, 2.0, 4.0, 1e-5, "rdp")

    def learn(self, shard: int) -> tuple[str, np.ndarray | None]:
        """What a training of a shard leaves behind: its tensors are a function of the shard's rows alone."""
        ledger = self.workspace.ledger
        attempt = ledger.next_attempt(shard)
        run = f"shard-{shard:03d}-attempt-{attempt:03d}"
        ledger.reserve(run, shard=shard, attempt=attempt, plan=self.plan_of_training(), admit=self.admit)
        self.trained.append(shard)
        rows = self.rows(shard)
        component = self.save(shard, attempt, rows)
        ledger.commit(run, component=component)
        return component, self.logits_of(component)

    def save(self, shard: int, attempt: int, rows: ShardRows, shapes: dict[str, tuple[int, ...]] | None = None) -> str:
        rng = np.random.default_rng(int(content_digest("".join(rows.ids).encode())[:8], 16) + shard)
        shapes = shapes or SHAPES
        arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        identity = component_id(arrays, base=BASE, space="tangent", shard=shard, attempt=attempt)
        record = ComponentRecord(
            id=identity,
            shard=shard,
            attempt=attempt,
            method="tangent",
            base=BASE,
            recipe="r" * 64,
            spend=PrivacySpend(2.0, 1e-5, "subject", "rdp"),
            secure_randomness=self.workspace.ledger.get("insecure_seed") is None,
        )
        self.workspace.save_component(record, arrays, private={"examples": list(rows.ids)})
        return identity

    def admit(self, plans: list[MechanismPlan]) -> None:
        if len(plans) > self.budget:
            raise BudgetError("the limit is reached.", remedy="Drop it.")

    def logits_of(self, component: str) -> np.ndarray:
        _, arrays = self.workspace.load_component(component)
        scale_B = np.array([int(identity[:8], 16) / 2**31 for identity in self.rows(None).ids], dtype=np.float32)
        return scale_B[:, None] * arrays["head.bias"][None]

    def build_cache(self) -> EvalCache:
        rows = self.rows(None)
        labels_B = np.array([CLASSES.index(label) for label in rows.labels], dtype=np.int64)
        base_BC = np.zeros((len(rows), len(CLASSES)), dtype=np.float32)
        logits = {name: self.logits_of(name) for name in self.composition.components}
        cache = EvalCache(rows.ids, labels_B, base_BC, logits)
        eval_cache.save(self.workspace, cache)
        arrays = {"n1": np.arange(len(rows) * 4, dtype=np.float32).reshape(len(rows), 2, 2)}
        eval_cache.save_constants(self.workspace, ids=rows.ids, arrays=arrays, base_digest=BASE)
        return cache

    def fill_cache(self, shard: int, rows: ShardRows | None = None) -> None:
        """What a worker leaves in a shard's cache: every row of it names its example."""
        ids = (rows or self.rows(shard)).ids
        kinds = {"n1": RowKind("F32", (16,)), "wide": RowKind("BF16", (3, 2))}
        with writing(self.cache_path(shard), ids=ids, kinds=kinds, facts={"base": BASE}) as writer:
            if ids:
                named = np.array([list(bytes.fromhex(identity)) * 2 for identity in ids], dtype=np.uint8)
                writer.put(0, {"n1": named, "wide": named[:, :12]})

    def cache_path(self, shard: int) -> Path:
        return self.workspace.objects.local_path(constants_path(shard))

    def adopt(self) -> None:
        """Commit what was written before a kill and not yet committed."""
        ledger = self.workspace.ledger
        for run in ledger.reservations():
            for component in self.workspace.component_ids() if run.state == "reserved" else []:
                path = self.workspace.component_record_path(component)
                if self.workspace.objects.exists(path):
                    record = self.workspace.load_record(component)
                    if (record.shard, record.attempt) == (run.shard, run.attempt):
                        ledger.commit(run.run_id, component=component)

    def plan(self, subject: str, mode: Any = "auto", request: str = "") -> RemovalPlan:
        """A new plan, whatever is pending."""
        presence = find(self.workspace, subject, partition=self.partition)
        spent = len(self.workspace.ledger.spent_plans(presence.shard))
        subject_hash = self.workspace.subject_hash(subject)
        number = len(self.workspace.ledger.requests())
        component = self.component(presence.shard)
        leaving = component if presence.num_train_rows else None
        private = is_private(self.workspace.ledger, self.spend(presence.shard))
        reached = touched(self.workspace, subject_hash, leaving=leaving, private=private)
        return plan_removal(
            RemovalRequest(request or f"q{number}", subject_hash, mode),
            presence,
            component=component,
            mode=mode,
            retrain_refused=None if spent < self.budget else "the limit is reached.",
            seeded=self.workspace.ledger.get("insecure_seed") is not None,
            already=subject_hash in self.workspace.ledger.suppressed(),
            reached=reached.actions,
            taught_edits=reached.about_subject,
        )

    def edit(self, subject: str, *, locator: str | None = None, beside: tuple[str, ...] = (), publish=True) -> str:
        """An edit that was learnt from an image of `subject` on the current model; its id."""
        rng = np.random.default_rng(len(self.composition.added) + 1)
        arrays = {"w/index": np.array([0], dtype=np.int32), "w/value": rng.standard_normal((1, 2)).astype(np.float32)}
        identity = edit_id(arrays, base=BASE, space="tangent")
        parts = tuple(self.composition.averaged)
        record = EditRecord(identity, BASE, "tangent", locator, 0.1, ("ffn:1",), parts, beside)
        header = {"base": BASE, "space": "tangent", "locator": locator or ""}
        content = f"image of {subject}".encode()
        image = {"digest": content_digest(content), "label": "cat", "content": b64encode(content).decode()}
        private = {"subjects": [self.workspace.subject_hash(subject)], "components": list(parts), "images": [image]}
        save_edit(self.workspace.objects, record, arrays, header=header, private=private)
        if publish:
            self.workspace.ledger.add_model(self.composition.adding(identity), reason=f"edit {identity}")
            clean_up(self.workspace)
        return identity

    def locator(self, *subjects: str) -> str:
        """An active locator that was trained on images of `subjects`; its digest."""
        digest = content_digest(" ".join(subjects).encode())
        hashes = [self.workspace.subject_hash(subject) for subject in subjects]
        private = {"subjects": hashes, "components": list(self.composition.averaged)}
        arrays = {"w": np.zeros(2, dtype=np.float32)}
        header = {"digest": digest, "base": BASE}
        objects, ledger = self.workspace.objects, self.workspace.ledger
        save_locator(objects, ledger, digest, arrays, header=header, private=private)
        self.workspace.write_manifest()
        return digest

    def execute(self, plan: RemovalPlan, subject: str, **changes: Any) -> dict[str, Any] | None:
        options: dict[str, Any] = {
            "workspace": self.workspace,
            "partition": self.partition,
            "subject": subject,
            "classes": CLASSES,
            "retrain": self.learn,
            "spend_after": self.spend,
            "statement": self.statement,
            "logits_of": self.logits_of,
        }
        return execute(plan, **{**options, **changes})

    def spend(self, shard: int) -> PrivacySpend:
        return PrivacySpend(2.0 * len(self.workspace.ledger.spent_plans(shard)), 1e-5, "subject", "rdp")

    def statement(self, composition: Composition) -> str:
        self.statements.append(composition)
        return "One subject changes little."

    def forget(self, subject: str, mode: Any = "auto", **changes: Any) -> dict[str, Any] | None:
        """What `privshard forget` does: continue what is pending, or plan and execute."""
        with self.workspace.hold():
            self.adopt()
            waiting = pending(self.workspace, self.workspace.subject_hash(subject))
            return self.execute(waiting or self.plan(subject, mode), subject, **changes)

    def failed(self) -> dict[str, str]:
        """The checks that fail, with their details."""
        found = checks(self.workspace, num_shards=NUM_SHARDS, classes=CLASSES)
        return {check.name: check.detail for check in found if not check.ok}


def build(root: Path, *, insecure_seed: int | None = 7, cached: bool = True) -> World:
    """Three shards of three subjects with two rows each, four held-out subjects, of whom one trains too."""
    workspace = Workspace.create(root, recipe_yaml="shards: 3\n", recipe_digest="r" * 64, insecure_seed=insecure_seed)
    workspace.ledger.put("base_digest", BASE)
    world = World(root, workspace)
    members: dict[int, list[str]] = {shard: [] for shard in range(NUM_SHARDS)}
    for number in range(1000):
        shard = members[world.partition.shard_of(f"person-{number:04d}")]
        if len(shard) < 3:
            shard.append(f"person-{number:04d}")
    for shard, subjects in members.items():
        people = [(subject, CLASSES[(shard + turn) % 2]) for subject in subjects for turn in range(2)]
        write_partition(workspace.objects, workspace.shard_dir(shard), rows=world.make_rows(*people))
        world.fill_cache(shard)
    held = [(f"held-{number}", CLASSES[number % 2]) for number in range(4)] + [(members[0][0], "eel")]
    write_partition(workspace.objects, workspace.eval_dir(), rows=world.make_rows(*held))
    components = [world.learn(shard)[0] for shard in range(NUM_SHARDS)]
    workspace.ledger.add_model(Composition.uniform(BASE, components), reason="train")
    model = workspace.ledger.current_model()
    assert model is not None
    write_model(workspace, model)
    workspace.objects.write("reports/influence.html", b"<html>")
    if cached:
        world.build_cache()
    workspace.write_manifest()
    world.trained.clear()
    return world


@pytest.fixture(autouse=True)
def keys_dir(tmp_path, monkeypatch):
    """Keys in a temporary folder, never in the user's; and files that need not survive a power failure."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.delenv("PRIVSHARD_KEYS", raising=False)
    monkeypatch.setenv("PRIVSHARD_KEYS_DIR", str(tmp_path / "keys"))


@pytest.fixture
def build_world(tmp_path) -> Callable[..., World]:
    """(name, options of `build`) -> a new world."""
    return lambda name="workspace", **options: build(tmp_path / name, **options)


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A seeded world, built once; tests get copies of it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _: None)
        world = build(tmp_path_factory.mktemp("template") / "workspace")
    world.workspace.close()
    return world.root


@pytest.fixture
def world(template, tmp_path) -> World:
    root = tmp_path / "workspace"
    shutil.copytree(template, root)
    return World(root, Workspace.open(root))


@pytest.fixture
def open_world() -> Callable[[Path], World]:
    """folder -> the world that is there."""
    return lambda root: World(root, Workspace.open(root))


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """(path, key=value…): change a JSON file in place."""

    def edit(path: Path, **values: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit
