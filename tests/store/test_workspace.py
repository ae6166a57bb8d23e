"""A workspace: made once for one recipe, completed after interruptions, opened only with its keys."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys

import pytest

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.core.model import Composition
from privshard.store.ledger import Ledger
from privshard.store.objects import ObjectStore
from privshard.store.workspace import Workspace

RECIPE = {"recipe_yaml": "shards: 4\n", "recipe_digest": "d1"}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "workspace"


def test_create_then_open(root, keys_dir):
    made = Workspace.create(root, **RECIPE)
    with Workspace.open(root) as again:
        assert (again.root, again.id, again.secrets) == (str(root), made.id, made.secrets)
        assert again.ledger.get("recipe_digest") == "d1"
        assert again.ledger.get("insecure_seed") is None
    assert (root / "recipe.yaml").read_text() == "shards: 4\n"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert (keys_dir / made.id / "keys.json").is_file()
    for key in (made.secrets.partition_key, made.secrets.hashing_key, made.secrets.signing_key):
        for place in root.iterdir():
            assert key not in place.read_bytes()
            assert key.hex().encode() not in place.read_bytes()
        assert key.hex() not in repr(made)


def test_same_recipe_returns_what_is_there(root):
    made = Workspace.create(root, **RECIPE)
    head = made.ledger.head
    again = Workspace.create(root, **RECIPE)
    assert (again.id, again.secrets, again.ledger.head) == (made.id, made.secrets, head)


def test_another_recipe_or_seed_is_refused_with_both(root):
    Workspace.create(root, **RECIPE)
    with pytest.raises(InputError, match=r"recipe_digest d1, got d2"):
        Workspace.create(root, recipe_yaml="shards: 5\n", recipe_digest="d2")
    with pytest.raises(InputError, match="insecure_seed None, got 7"):
        Workspace.create(root, **RECIPE, insecure_seed=7)
    assert (root / "recipe.yaml").read_text() == "shards: 4\n"


def test_no_workspace_names_the_command(tmp_path, root):
    for place in (tmp_path, root):
        with pytest.raises(InputError, match="privshard train --workspace"):
            Workspace.open(place)
    assert not root.exists()


@pytest.mark.parametrize("stop_at", ["create", "secrets", "recipe_digest", "recipe.yaml", "manifest.json"])
def test_interrupted_creation_is_completed_by_the_next(root, monkeypatch, stop_at):
    class Interrupted(BaseException):
        pass

    def stop(original, at):
        def wrapped(self, *args, **kwargs):
            if args[:1] == (at,):
                raise Interrupted
            return original(self, *args, **kwargs)

        return wrapped

    def stop_now(*_, **__):
        raise Interrupted

    with monkeypatch.context() as patched:
        if stop_at == "create":
            patched.setattr("privshard.store.journal.Journal.append", stop_now)
        elif stop_at == "secrets":
            patched.setattr("privshard.store.creation.create_secrets", stop_now)
        elif stop_at == "recipe_digest":
            patched.setattr(Ledger, "put", stop(Ledger.put, stop_at))
        else:
            patched.setattr(ObjectStore, "write", stop(ObjectStore.write, stop_at))
        with pytest.raises(Interrupted):
            Workspace.create(root, **RECIPE)
    if stop_at in ("create", "secrets", "recipe_digest"):
        with pytest.raises(InputError, match="train --workspace"):
            Workspace.open(root)
    made = Workspace.create(root, **RECIPE)
    assert (root / "recipe.yaml").read_text() == "shards: 4\n"
    assert made.verify_ledger() == []
    assert Workspace.open(root).secrets == made.secrets


def test_missing_or_other_keys_are_refused(root, keys_dir, monkeypatch):
    made = Workspace.create(root, **RECIPE)
    keys = keys_dir / made.id / "keys.json"
    text = keys.read_text()
    keys.unlink()
    for reopen in (lambda: Workspace.open(root), lambda: Workspace.create(root, **RECIPE)):
        with pytest.raises(ResourceError, match="PRIVSHARD_KEYS"):
            reopen()
    assert not keys.exists()
    keys.write_text(text.replace(made.secrets.partition_key.hex(), "00" * 32))
    with pytest.raises(ResourceError, match="got other ones"):
        Workspace.open(root)
    monkeypatch.setenv("PRIVSHARD_KEYS", text)
    assert Workspace.open(root).secrets == made.secrets


def test_insecure_workspace_needs_no_keys_and_says_so(root, tmp_path, keys_dir):
    one = Workspace.create(root, **RECIPE, insecure_seed=7)
    two = Workspace.create(tmp_path / "two", **RECIPE, insecure_seed=7)
    assert one.id != two.id
    assert one.subject_hash("ada") == two.subject_hash("ada")
    assert not keys_dir.exists()
    assert Workspace.open(root).secrets == one.secrets
    assert one.write_manifest()["insecure_seed"] == 7


def test_paths(root):
    w = Workspace.create(root, **RECIPE, insecure_seed=0)
    assert [w.shard_dir(7), w.eval_dir(), w.cache_dir(1234), w.eval_cache_dir()] == [
        "data/shard=007",
        "data/eval",
        "cache/shard=1234",
        "cache/eval",
    ]
    assert [w.component_path("ab"), w.component_record_path("ab"), w.private_path("ab")] == [
        "components/ab.safetensors",
        "components/ab.json",
        "private/ab.json",
    ]
    assert [w.model_path(1), w.receipt_path("q1"), w.report_path("influence")] == [
        "models/v0001.json",
        "receipts/q1.json",
        "reports/influence.html",
    ]
    for bad in (lambda: w.shard_dir(-1), lambda: w.receipt_path("../q"), lambda: w.report_path("")):
        with pytest.raises(InputError):
            bad()


def test_hashes_are_keyed_and_of_one_purpose(root, tmp_path):
    w = Workspace.create(root, **RECIPE)
    other = Workspace.create(tmp_path / "other", **RECIPE)
    assert w.subject_hash("ada") == w.subject_hash("ada") != w.subject_hash("bob")
    assert w.subject_hash("ada") != other.subject_hash("ada")
    example = w.example_hash(image=b"jpeg", label="3", subject="ada")
    assert example not in (w.subject_hash("ada"), other.example_hash(image=b"jpeg", label="3", subject="ada"))
    assert example != w.example_hash(image=b"jpeg3", label="", subject="ada")


def test_examples_are_hashed_as_the_data_hashes_them(root):
    examples = pytest.importorskip("privshard.data.examples")
    w = Workspace.create(root, **RECIPE)
    row = {"image": b"jpeg", "label": "3", "subject": "ada"}
    assert w.example_hash(**row) == examples.example_id(w.secrets.hashing_key, **row)


def test_receipts_are_signed(root, tmp_path):
    w = Workspace.create(root, **RECIPE)
    signed = w.save_receipt("q1", {"guarantee": "exact_drop"})
    assert w.check_signature(signed)
    assert w.load_receipt("q1") == signed
    w.objects.write_json("receipts/q1.json", {**signed, "guarantee": "fresh_retrain"})
    with pytest.raises(VerificationError, match="q1"):
        w.load_receipt("q1")
    foreign = Workspace.create(tmp_path / "other", **RECIPE).save_receipt("q1", {"guarantee": "exact_drop"})
    w.objects.write_json("receipts/q1.json", foreign)
    with pytest.raises(VerificationError, match="q1"):
        w.load_receipt("q1")


def test_manifest_tells_people_what_the_ledger_says(root, plan):
    w = Workspace.create(root, **RECIPE)
    w.ledger.put("base_digest", "b")
    w.ledger.put("privacy", {"epsilon": 3.0})
    for shard, run in enumerate(("r0", "r1", "r2")):
        w.ledger.reserve(run, shard=shard % 2, attempt=shard // 2, plan=plan, admit=lambda _: None)
        w.ledger.commit(run, component=f"c{shard}")
    w.ledger.add_model(Composition.uniform("b", ["c1", "c2"]), reason="forget", metrics={"accuracy": 0.5})
    written = w.write_manifest()
    assert json.loads((root / "manifest.json").read_text()) == written
    assert w.check_signature(written)
    assert (written["format"], written["workspace"], written["recipe"], written["base"]) == (1, w.id, "d1", "b")
    assert written["privacy"] == {"epsilon": 3.0}
    assert written["model"]["version"] == 1
    assert written["model"]["weights"] == {"c1": 0.5, "c2": 0.5}
    assert written["components"] == [
        {"id": "c1", "shard": 1, "attempt": 0},
        {"id": "c2", "shard": 0, "attempt": 1},
    ]
    assert written["releases"] == {"0": 2, "1": 1}


def test_verify_anchors_the_chain_at_the_manifest(root, tmp_path):
    w = Workspace.create(root, **RECIPE)
    shutil.copy(root / "ledger.db", tmp_path / "earlier.db")
    w.ledger.put("privacy", {})
    assert w.verify_ledger() == []
    w.write_manifest()
    assert w.verify_ledger() == []
    shutil.copy(tmp_path / "earlier.db", root / "ledger.db")
    assert any("missing or changed" in problem for problem in w.verify_ledger())
    manifest = json.loads((root / "manifest.json").read_text())
    w.objects.write_json("manifest.json", {**manifest, "recipe": "d2"})
    assert any("signature does not hold" in problem for problem in w.verify_ledger())
    w.objects.delete("manifest.json")
    assert any("manifest.json is missing" in problem for problem in w.verify_ledger())


def test_hold_sweeps_what_killed_writers_left(root):
    w = Workspace.create(root, **RECIPE)
    w.objects.write("data/shard=000/rows", b"")
    left = root / "data/shard=000/.rows.00.tmp"
    left.write_bytes(b"personal")
    with w.hold():
        assert not left.exists()
        with pytest.raises(ResourceError, match="alone"), w.hold():
            pytest.fail("held twice")


def test_object_stores_need_a_database():
    with pytest.raises(ResourceError, match="SQLite needs a local disk"):
        Workspace.create("mock:///bucket/w", **RECIPE)


def test_ledger_may_lie_elsewhere(root, tmp_path):
    made = Workspace.create(root, **RECIPE, ledger=f"sqlite:///{tmp_path}/elsewhere.db")
    assert not (root / "ledger.db").exists()
    assert Workspace.open(root, ledger=f"sqlite:///{tmp_path}/elsewhere.db").id == made.id


def test_opening_imports_nothing_heavy(root):
    Workspace.create(root, **RECIPE)
    code = (
        "import sys; from privshard.store.workspace import Workspace; w = Workspace.open(sys.argv[1]);"
        "w.verify_ledger(); w.component_ids(); w.write_manifest();"
        "print([m for m in ('torch', 'timm', 'ray', 'opacus', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
