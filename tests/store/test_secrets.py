"""Keys are drawn once, kept for their owner's eyes, and never shown."""

from __future__ import annotations

import json
import stat

import pytest

from privshard.core.errors import ResourceError
from privshard.store.secrets import Secrets, create_secrets, insecure_secrets, keys_path, load_secrets

KEYS = ("partition_key", "hashing_key", "signing_key")


def test_created_keys_are_loaded_and_private(keys_dir):
    made = create_secrets("w1")
    assert load_secrets("w1") == made
    assert len({made.partition_key, made.hashing_key, made.signing_key}) == 3
    path = keys_dir / "w1" / "keys.json"
    assert keys_path("w1") == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [place.name for place in path.parent.iterdir()] == ["keys.json"]


def test_keys_are_never_replaced(keys_dir):
    made = create_secrets("w1")
    assert create_secrets("w1") == made
    assert create_secrets("w2").partition_key != made.partition_key


def test_default_folder_is_the_users_configuration(monkeypatch, tmp_path):
    monkeypatch.delenv("PRIVSHARD_KEYS_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys_path("w1").parts[-3:] == ("privshard", "w1", "keys.json")


def test_missing_keys_name_the_path_and_the_variables(keys_dir):
    with pytest.raises(ResourceError) as caught:
        load_secrets("w1")
    for part in (str(keys_dir / "w1" / "keys.json"), "PRIVSHARD_KEYS_DIR", "PRIVSHARD_KEYS"):
        assert part in str(caught.value)


def test_repr_and_errors_never_show_keys(monkeypatch):
    made = create_secrets("w1")
    shown = repr(made) + str(made)
    for name in KEYS:
        assert getattr(made, name).hex() not in shown
        assert repr(getattr(made, name))[2:10] not in shown
    text = keys_path("w1").read_text().replace('"hashing_key"', '"other"')
    monkeypatch.setenv("PRIVSHARD_KEYS", text)
    with pytest.raises(ResourceError) as caught:
        load_secrets("w1")
    assert made.partition_key.hex() not in str(caught.value)
    assert caught.value.__cause__ is None


def test_environment_overrides_the_file(monkeypatch):
    made = create_secrets("w1")
    text = keys_path("w1").read_text()
    keys_path("w1").unlink()
    monkeypatch.setenv("PRIVSHARD_KEYS", text)
    assert load_secrets("w1") == made
    assert create_secrets("w1") == made
    assert not keys_path("w1").exists()
    with pytest.raises(ResourceError, match="got those of w1"):
        load_secrets("w2")


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"partition_key": 3}'])
def test_damaged_file_is_refused(damage):
    create_secrets("w1")
    keys_path("w1").write_text(damage)
    with pytest.raises(ResourceError, match="w1"):
        load_secrets("w1")


def test_short_key_is_refused():
    create_secrets("w1")
    value = json.loads(keys_path("w1").read_text())
    keys_path("w1").write_text(json.dumps({**value, "hashing_key": "00"}))
    with pytest.raises(ResourceError, match="hashing_key: expected 32 bytes, got 1"):
        load_secrets("w1")


def test_insecure_keys_are_a_function_of_the_seed_and_say_so():
    one, two = insecure_secrets("w1", 7), insecure_secrets("w2", 7)
    assert [getattr(one, name) for name in KEYS] == [getattr(two, name) for name in KEYS]
    assert one.partition_key != insecure_secrets("w1", 8).partition_key
    assert one.insecure_seed == 7
    assert create_secrets("w1").insecure_seed is None


def test_fingerprint_tells_keys_apart():
    base = {name: bytes([number]) * 32 for number, name in enumerate(KEYS)}
    fingerprints = {Secrets("w", **base).fingerprint}
    fingerprints |= {Secrets("w", **{**base, name: b"x" * 32}).fingerprint for name in KEYS}
    assert len(fingerprints) == 4
