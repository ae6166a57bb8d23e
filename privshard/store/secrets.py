"""The three keys of a workspace, kept outside it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from privshard.core.digest import keyed_digest
from privshard.core.errors import ResourceError
from privshard.store.disk import explain, make_folder, write_new

KEYS_ENV = "PRIVSHARD_KEYS"
KEYS_DIR_ENV = "PRIVSHARD_KEYS_DIR"
_NAMES = ("partition_key", "hashing_key", "signing_key")


@dataclass(frozen=True)
class Secrets:
    """The keys of one workspace, 32 bytes each; `repr` never shows them.

    partition_key: subject -> shard, drawn before any data is seen. hashing_key: keyed hashes of subjects and
    examples. signing_key: receipts and the manifest. insecure_seed: the seed of keys that anybody can derive, for
    tests; None in production.
    """

    workspace_id: str
    partition_key: bytes = field(repr=False)
    hashing_key: bytes = field(repr=False)
    signing_key: bytes = field(repr=False)
    insecure_seed: int | None = None

    def __post_init__(self) -> None:
        for name in _NAMES:
            if len(getattr(self, name)) != 32:
                raise ResourceError(f"{name}: expected 32 bytes, got {len(getattr(self, name))}.")

    @property
    def fingerprint(self) -> str:
        """What tells these keys from others without telling them: a keyed digest, safe to publish."""
        return keyed_digest(self.hashing_key, "privshard.keys", self.partition_key, self.signing_key)


def keys_path(workspace_id: str) -> Path:
    """Where the keys of a workspace lie: below PRIVSHARD_KEYS_DIR, or the user's configuration folder."""
    from platformdirs import user_config_dir

    return Path(os.environ.get(KEYS_DIR_ENV) or user_config_dir("privshard")) / workspace_id / "keys.json"


def load_secrets(workspace_id: str) -> Secrets:
    """The keys of an existing workspace: from PRIVSHARD_KEYS (the JSON itself) or from their file.

    ResourceError where there are none, or where they are another workspace's.
    """
    text = os.environ.get(KEYS_ENV)
    if text:
        return _parse(text, workspace_id, f"the environment variable {KEYS_ENV}")
    path = keys_path(workspace_id)
    try:
        return _parse(path.read_text(), workspace_id, str(path))
    except FileNotFoundError as error:
        raise ResourceError(
            f"Expected the keys of workspace {workspace_id} at {path}, found none.",
            remedy=f"Copy keys.json from where the workspace was made to that path, point {KEYS_DIR_ENV} to its "
            f"folder, or put its content into {KEYS_ENV}. New keys cannot replace it.",
        ) from error
    except OSError as error:
        raise explain(error, path) from error


def create_secrets(workspace_id: str) -> Secrets:
    """Draw the keys of a new workspace from the operating system and store them; existing ones are never replaced.

    The folder is made for its owner only (0700), the file too (0600), and it appears whole. Where PRIVSHARD_KEYS is
    set, or the file is there (an earlier creation was interrupted), those keys are returned.
    """
    if os.environ.get(KEYS_ENV):
        return load_secrets(workspace_id)
    path = keys_path(workspace_id)
    drawn = _named(workspace_id, [secrets.token_bytes(32) for _ in _NAMES])
    try:
        make_folder(path.parent, mode=0o700)
    except OSError as error:
        raise explain(error, path) from error
    return drawn if write_new(path, _dump(drawn).encode()) else load_secrets(workspace_id)


def insecure_secrets(workspace_id: str, seed: int) -> Secrets:
    """Keys that are a function of `seed` alone, for tests: two workspaces with one seed hash and partition alike."""
    keys = [hashlib.blake2b(f"insecure {name} {seed}".encode(), digest_size=32).digest() for name in _NAMES]
    return replace(_named(workspace_id, keys), insecure_seed=seed)


def _named(workspace_id: str, keys: Sequence[bytes]) -> Secrets:
    return Secrets(workspace_id, **dict(zip(_NAMES, keys, strict=True)))


def _dump(value: Secrets) -> str:
    return json.dumps(
        {"workspace": value.workspace_id, **{name: getattr(value, name).hex() for name in _NAMES}}, indent=1
    )


def _parse(text: str, workspace_id: str, place: str) -> Secrets:
    """Keys from JSON. Errors name the place and never show the text."""
    try:
        value: Mapping[str, Any] = json.loads(text)
        keys = [bytes.fromhex(value[name]) for name in _NAMES]
        owner = value.get("workspace", workspace_id)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ResourceError(
            f"Expected JSON with {', '.join(_NAMES)} as hexadecimal digits in {place}, got something else.",
            remedy="Use the keys.json that was made with the workspace, unchanged.",
        ) from None
    if owner != workspace_id:
        raise ResourceError(
            f"Expected the keys of workspace {workspace_id} in {place}, got those of {owner}.",
            remedy=f"Unset {KEYS_ENV}, or give it the keys.json of this workspace.",
        )
    return _named(workspace_id, keys)
