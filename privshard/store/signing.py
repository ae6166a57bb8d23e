"""Signatures of receipts and manifests: HMAC-SHA256 over canonical JSON, under the workspace's signing key."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from privshard.core.digest import canonical_json

SIGNATURE = "signature"


def sign(key: bytes, value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with its "signature"; one that it carries is replaced.

    A signature shows that a holder of the key wrote exactly this content. It does not show when, and whoever checks
    it holds the key too.
    """
    return {**value, SIGNATURE: _signature(key, value)}


def check_signature(key: bytes, value: Mapping[str, Any]) -> bool:
    """Whether `value` is what `sign` returned under the same key."""
    claimed = value.get(SIGNATURE)
    return isinstance(claimed, str) and hmac.compare_digest(claimed.encode(), _signature(key, value).encode())


def _signature(key: bytes, value: Mapping[str, Any]) -> str:
    unsigned = {name: item for name, item in value.items() if name != SIGNATURE}
    return hmac.digest(key, canonical_json(unsigned), "sha256").hex()
