"""Digests: public ones of content, keyed ones of whatever identifies a person."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> bytes:
    """The one JSON encoding that is digested: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def content_digest(data: bytes) -> str:
    """SHA-256 of public bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a public value."""
    return content_digest(canonical_json(value))


def keyed_digest(key: bytes, purpose: str, *parts: bytes | str) -> str:
    """BLAKE2b-256 of `parts` under a secret `key`: what may be stored about a person outside `data/`.

    Each part is preceded by its length, so ("ab", "c") and ("a", "bc") differ; `purpose` separates the uses of
    one key (at most 16 bytes).
    """
    state = hashlib.blake2b(key=key, digest_size=32, person=purpose.encode())
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.hexdigest()


def tensors_digest(arrays: Mapping[str, Any], *header: str) -> str:
    """SHA-256 over named numpy arrays (sorted by name, with dtype and shape) after the `header` strings.

    Equal names, types, shapes and bits give equal digests, whatever container held them.
    """
    state = hashlib.sha256()
    for text in header:
        state.update(text.encode() + b"\0")
    for name in sorted(arrays):
        array = arrays[name]
        state.update(f"{name}\0{array.dtype.str}\0{tuple(array.shape)}\0".encode())
        state.update(array.tobytes())
    return state.hexdigest()
