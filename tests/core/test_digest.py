"""Digests: equal content gives equal digests, any difference another one."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from privshard.core.digest import canonical_json, content_digest, json_digest, keyed_digest, tensors_digest

KEY = bytes(range(32))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('aé"\\ \n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.lists(st.text("ab\0", max_size=3), max_size=3)


def test_content_digest_is_sha256():
    assert content_digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(JSON)
def test_canonical_json_keeps_the_value_and_is_one_spelling(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_canonical_json_sorts_and_adds_nothing():
    assert canonical_json({"b": 1, "a": [0.1, "é"]}) == '{"a":[0.1,"é"],"b":1}'.encode()
    assert (
        json_digest({"b": 1, "a": 2}) == json_digest({"a": 2, "b": 1}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_canonical_json_refuses_what_json_has_not(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


@given(PARTS, PARTS)
def test_keyed_digests_of_different_parts_differ(left, right):
    same = keyed_digest(KEY, "p", *left) == keyed_digest(KEY, "p", *right)
    assert same == (left == right)


def test_keyed_digest_is_blake2b_over_lengths_and_parts():
    state = hashlib.blake2b(b"\2\0\0\0\0\0\0\0ab\1\0\0\0\0\0\0\0c", key=KEY, digest_size=32, person=b"p")
    assert keyed_digest(KEY, "p", "ab", b"c") == state.hexdigest()


def test_key_and_purpose_separate():
    digests = {keyed_digest(key, purpose, "ada") for key in (KEY, bytes(32)) for purpose in ("p", "q")}
    assert len(digests) == 4
    with pytest.raises(ValueError, match="person"):
        keyed_digest(KEY, "longer than sixteen bytes", "ada")


SMALL = arrays.arrays(
    st.sampled_from([np.dtype("<f4"), np.dtype("<f8"), np.dtype("<i4")]),
    arrays.array_shapes(min_dims=0, max_dims=2, max_side=2),
    elements=st.sampled_from([0, 1]),
)


def _content(items):
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in items.items()}


@given(st.dictionaries(st.sampled_from("ab"), SMALL), st.dictionaries(st.sampled_from("ab"), SMALL))
def test_tensor_digests_agree_exactly_when_contents_do(left, right):
    assert (tensors_digest(left, "h") == tensors_digest(right, "h")) == (_content(left) == _content(right))


def test_tensor_digest_ignores_order_and_layout_but_not_the_sign_of_zero():
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    one, other = {"a": grid.T, "b": grid}, {"b": grid, "a": np.ascontiguousarray(grid.T)}
    assert tensors_digest(one) == tensors_digest(other)
    assert tensors_digest({"a": np.float32([0.0])}) != tensors_digest({"a": np.float32([-0.0])})
    assert tensors_digest(one, "x", "y") != tensors_digest(one, "xy")
