"""Signatures hold for exactly what was signed, under the key that signed."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest

from privshard.store.signing import check_signature, sign

KEY = bytes(range(32))
RECEIPT = {"request": "r1", "actions": [{"action": "drop", "shard": 3}], "accuracy": 0.5}


def test_signature_is_hmac_sha256_of_sorted_json():
    text = json.dumps(RECEIPT, sort_keys=True, separators=(",", ":")).encode()
    assert sign(KEY, RECEIPT) == {**RECEIPT, "signature": hmac.new(KEY, text, hashlib.sha256).hexdigest()}


def test_holds_through_json_and_when_signed_again():
    signed = sign(KEY, RECEIPT)
    assert check_signature(KEY, json.loads(json.dumps(signed)))
    assert sign(KEY, signed) == signed


@pytest.mark.parametrize(
    "change",
    [
        {"request": "r2"},
        {"accuracy": 0.25},
        {"extra": None},
        {"signature": "0" * 64},
        {"signature": None},
        {"signature": "é"},
    ],
)
def test_any_change_breaks_it(change):
    assert not check_signature(KEY, {**sign(KEY, RECEIPT), **change})


def test_other_key_or_no_signature():
    assert not check_signature(bytes(32), sign(KEY, RECEIPT))
    assert not check_signature(KEY, RECEIPT)
