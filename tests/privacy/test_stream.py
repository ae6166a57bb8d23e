import copy
import math
import pickle
import struct

import numpy as np
import pytest
import torch
from scipy import stats

from privshard.core.errors import InputError
from privshard.privacy.stream import (
    ChaChaStream,
    add_normal_to_each,
    derive_key,
    fresh_key,
    insecure_key,
    key_stream,
)

KEY = bytes(range(32))


def chacha_block(key: bytes, counter_and_nonce: bytes) -> bytes:
    """The block function as RFC 8439 section 2.3 writes it."""

    def rotate(value: int, by: int) -> int:
        return ((value << by) | (value >> (32 - by))) & 0xFFFFFFFF

    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key)]
    start += struct.unpack("<4I", counter_and_nonce)
    x = list(start)
    columns = [(i, i + 4, i + 8, i + 12) for i in range(4)]
    diagonals = [(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4)]
    for a, b, c, d in (columns + diagonals) * 10:
        for p, q, r, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[p] = (x[p] + x[q]) & 0xFFFFFFFF
            x[r] = rotate(x[r] ^ x[p], by)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(x, start, strict=True)))


@pytest.mark.parametrize(
    ("key", "counter", "nonce", "expected"),
    [  # RFC 8439: section 2.3.2, and appendix A.1 vectors 1, 3 and 5
        (
            KEY,
            1,
            "000000090000004a00000000",
            "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
            "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
        ),
        (
            bytes(32),
            0,
            "000000000000000000000000",
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
            "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        ),
        (
            bytes(31) + b"\1",
            1,
            "000000000000000000000000",
            "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
            "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
        ),
        (
            bytes(32),
            0,
            "000000000000000000000002",
            "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
            "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
        ),
    ],
)
def test_key_stream_gives_the_vectors_of_rfc_8439(key, counter, nonce, expected):
    raw = bytes.fromhex(nonce)
    block = counter | int.from_bytes(raw[:4], "little") << 32
    assert key_stream(key, block=block, num_bytes=64, nonce=raw[4:]).hex() == expected
    assert chacha_block(key, struct.pack("<I", counter) + raw).hex() == expected


@pytest.mark.parametrize("block", [0, 7, 2**32 - 2, 5 * 2**32 - 1, 2**64 - 3])
def test_key_stream_at_any_position_equals_the_block_function(block):
    expected = b"".join(chacha_block(KEY, (block + i).to_bytes(8, "little") + bytes(8)) for i in range(3))
    assert key_stream(KEY, block=block, num_bytes=150) == expected[:150]


def test_key_stream_does_not_depend_on_how_it_is_cut():
    whole = key_stream(KEY, block=2**32 - 5000, num_bytes=640_000)
    pieces = [key_stream(KEY, block=2**32 - 5000 + i, num_bytes=64 * 1000) for i in range(0, 10_000, 1000)]
    assert b"".join(pieces) == whole


def test_key_stream_refuses_what_would_wrap_around():
    with pytest.raises(InputError, match="block"):
        key_stream(KEY, block=2**64 - 1, num_bytes=65)


def test_draws_move_on_and_never_repeat():
    stream = ChaChaStream(KEY, purpose="noise")
    first, second = stream.bytes(65), stream.bytes(65)
    assert stream.position == 4
    assert first != second
    assert ChaChaStream(KEY, purpose="noise", position=2).bytes(65) == second


def test_streams_differ_between_purposes_keys_shards_and_attempts():
    keys = [insecure_key(seed, shard=s, attempt=a) for seed in (0, 1) for s in (0, 1) for a in (0, 1)]
    keys += [fresh_key(), fresh_key()]
    draws = {bytes(ChaChaStream(key, purpose=p).bytes(32)) for key in keys for p in ("noise", "sampling")}
    assert len(draws) == 20


def test_insecure_keys_repeat_for_equal_seeds():
    assert insecure_key(3, shard=1, attempt=2) == insecure_key(3, shard=1, attempt=2)
    noise = [ChaChaStream(insecure_key(3, shard=1, attempt=2), purpose="noise").normal(9) for _ in range(2)]
    assert torch.equal(*noise)


def test_derived_keys_separate_their_labels():
    assert derive_key(KEY, "ab", "c") != derive_key(KEY, "a", "bc")
    with pytest.raises(InputError, match="32 bytes"):
        derive_key(b"short", "noise")


def test_streams_can_not_be_copied_and_hide_their_key():
    stream = ChaChaStream(KEY, purpose="noise")
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="repeat"):
            duplicate(stream)
    assert KEY.hex() not in repr(stream)
    assert "noise" in repr(stream)


def test_uint64_is_little_endian_and_uniform():
    assert ChaChaStream(KEY, purpose="x").uint64(8).tobytes() == ChaChaStream(KEY, purpose="x").bytes(64)
    words = ChaChaStream(KEY, purpose="x").uint64(200_000)
    assert stats.kstest(words / 2.0**64, "uniform").pvalue > 1e-4
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 6 * 0.5 / math.sqrt(len(words))


def test_normal_is_box_muller_of_53_bit_uniforms():
    words = [int(word) for word in ChaChaStream(KEY, purpose="x").uint64(6)]
    u = [((word >> 11) + 1) * 2.0**-53 for word in words]
    expected = []
    for i in (0, 2, 4):
        radius, angle = math.sqrt(-2 * math.log(u[i])), 2 * math.pi * u[i + 1]
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    drawn = ChaChaStream(KEY, purpose="x").normal(5)
    assert drawn.dtype == torch.float64
    np.testing.assert_allclose(drawn.numpy(), expected[:5], rtol=0, atol=1e-14)


def test_normal_does_not_depend_on_the_number_that_follow():
    long = ChaChaStream(KEY, purpose="x").normal(100_001)
    assert torch.equal(ChaChaStream(KEY, purpose="x").normal(32_768), long[:32_768])


def test_normal_has_gaussian_moments_tails_and_no_correlation():
    n = 1 << 20
    z = ChaChaStream(KEY, purpose="moments").normal(n).numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-4
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / n)
    for bound in (2.0, 3.0, 4.0):
        expected = n * 2 * stats.norm.sf(bound)
        assert abs((np.abs(z) > bound).sum() - expected) < 5 * math.sqrt(expected)
    for lag in (1, 2, 8):
        assert abs((z[:-lag] * z[lag:]).mean()) < 5 / math.sqrt(n)
    assert abs((z[::2] ** 2 * z[1::2] ** 2).mean() - 1) < 5 * math.sqrt(8 / (n / 2))


def test_normal_of_nothing_is_empty():
    assert ChaChaStream(KEY, purpose="x").normal(0).shape == (0,)
    with pytest.raises(InputError, match="0 or more"):
        ChaChaStream(KEY, purpose="x").bytes(-1)


@pytest.mark.parametrize("shapes", [[(3, 5)], [(3,), (8,), (2, 9), (), (65,)]])
def test_noise_for_many_tensors_at_once_is_that_of_one_after_the_other(shapes):
    totals = [torch.full(shape, float(number)) for number, shape in enumerate(shapes)]
    totals[-1] = torch.full_like(totals[-1], math.nan)
    alone, together = (ChaChaStream(KEY, purpose="test", position=5) for _ in range(2))
    expected = [alone.add_normal(total, std=0.5) for total in totals]
    found = add_normal_to_each(totals, std=0.5, stream=together)
    assert together.position == alone.position
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
