"""Cryptographic randomness: a 32-byte key expanded by ChaCha20 into bytes, integers and Gaussians."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from privshard.core.digest import keyed_digest
from privshard.core.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KEY_BYTES = 32
BLOCK_BYTES = 64
_WORDS_PER_BLOCK = BLOCK_BYTES // 8
_CHUNK_WORDS = 1 << 15  # 256 KiB of key stream at a time stays in the cache
_MAX_BLOCK = 1 << 64


def fresh_key() -> bytes:
    """A root key from the operating system's entropy; it must never be stored or sent anywhere."""
    return secrets.token_bytes(KEY_BYTES)


def insecure_key(seed: int, *, shard: int, attempt: int) -> bytes:
    """A root key that is a function of its arguments, for tests: whoever knows the seed can subtract the noise."""
    return derive_key(bytes(KEY_BYTES), "insecure", str(seed), str(shard), str(attempt))


def derive_key(root: bytes, *labels: str) -> bytes:
    """The subkey of `root` for `labels`, by keyed BLAKE2b; subkeys of different labels are independent.

    >>> derive_key(bytes(32), "noise") != derive_key(bytes(32), "sampling")
    True
    """
    return bytes.fromhex(keyed_digest(_checked(root), "privshard.derive", *labels))


def key_stream(key: bytes, *, block: int, num_bytes: int, nonce: bytes = bytes(8)) -> bytearray:
    """`num_bytes` of the ChaCha20 key stream (RFC 8439 block function), starting at 64-byte block number `block`.

    The 16 bytes that RFC 8439 splits into a 32-bit counter and a 96-bit nonce are used in Bernstein's original
    split, a 64-bit counter and a 64-bit `nonce`, so that no run can exhaust the counter. Tested against the RFC's
    vectors and against a pure Python block function.
    """
    _checked(key)
    num_blocks = -(-num_bytes // BLOCK_BYTES)
    if block < 0 or block + num_blocks > _MAX_BLOCK:
        raise InputError(f"ChaCha20 block: expected 0 to 2^64 - {num_blocks}, got {block}.")
    out = bytearray(num_bytes)
    view, zeros, done = memoryview(out), bytes(min(num_bytes, _CHUNK_WORDS * 8)), 0
    while done < num_bytes:
        # The library counts in 32 bits: a new cipher at every 2^32 blocks carries into the upper half by hand.
        left_in_counter = ((1 << 32) - (block & 0xFFFFFFFF)) * BLOCK_BYTES
        size = min(num_bytes - done, left_in_counter, len(zeros))
        encryptor = Cipher(ChaCha20(key, block.to_bytes(8, "little") + nonce), mode=None).encryptor()
        encryptor.update_into(zeros[:size], view[done : done + size])
        done += size
        block += size // BLOCK_BYTES
    return out


class ChaChaStream:
    """A stream of secret randomness for one purpose, expanded from `key`.

    key: 32 bytes. purpose: what the numbers are for; streams of one key with different purposes are independent.
    position: the 64-byte block that the next draw starts at; each draw starts at a new block and moves it on, so no
    part of the key stream is ever used twice by one stream. Two streams of one key and purpose repeat each other:
    make one, pass it on. It refuses to be copied or pickled for that reason.

    Guaranteed: as unpredictable as ChaCha20 under a secret key. Not guaranteed: protection against timing.

    >>> stream = ChaChaStream(insecure_key(0, shard=0, attempt=0), purpose="example")
    >>> stream.normal(3).shape, stream.position
    (torch.Size([3]), 1)
    """

    def __init__(self, key: bytes, *, purpose: str, position: int = 0) -> None:
        self._key = derive_key(key, "stream", purpose)
        self._uploaded: dict[torch.device, Tensor] = {}
        self.purpose = purpose
        self.position = position

    def __repr__(self) -> str:
        return f"ChaChaStream(purpose={self.purpose!r}, position={self.position})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A ChaChaStream can't be copied or pickled: its copy would repeat its numbers.")

    def bytes(self, n: int) -> bytearray:
        """The next `n` bytes."""
        if n < 0:
            raise InputError(f"random numbers: expected a count of 0 or more, got {n}.")
        out = key_stream(self._key, block=self.position, num_bytes=n)
        self.position += -(-n // BLOCK_BYTES)
        return out

    def uint64(self, n: int) -> np.ndarray:
        """The next `n` integers, uniform over 0 to 2^64 - 1."""
        return np.frombuffer(self.bytes(8 * n), dtype="<u8")

    def normal(self, n: int, *, device: str = "cpu") -> Tensor:
        """The next `n` standard Gaussians, float64, on `device`; a CUDA device draws the same numbers itself.

        Box-Muller on pairs of uniforms of 53 bits in (0, 1]: z_2i = sqrt(-2 log u_2i) cos(2 pi u_2i+1), z_2i+1 the
        same with sin. Tails are exact to sqrt(2 * 53 log 2) = 8.57 standard deviations, where they end.
        """
        import torch

        if device.startswith("cuda"):
            from privshard.privacy import gpu_stream

            return gpu_stream.normal(self._words(torch.device(device)), block=self._taken(8 * n), n=n)
        out = torch.empty(n + n % 2, dtype=torch.float64)
        for start in range(0, len(out), _CHUNK_WORDS):
            _box_muller_(out[start : start + _CHUNK_WORDS], self)
        return out[:n]

    def add_normal(self, total: Tensor, *, std: float) -> Tensor:
        """`total` plus std times the next Gaussians, in the order of its entries, added in float64 and rounded once.

        Entries that are not finite count as 0. The same on a CUDA device, where the noise is never in memory.
        """
        if total.is_cuda:
            from privshard.privacy import gpu_stream

            block = self._taken(8 * total.numel())
            return gpu_stream.add_normal(self._words(total.device), total, block=block, std=std)
        noise = self.normal(total.numel()).mul_(std).view_as(total)
        return total.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).add_(noise).to(total.dtype)

    def _words(self, device: torch.device) -> Tensor:
        """The key on a GPU, uploaded once."""
        from privshard.privacy import gpu_stream

        if device not in self._uploaded:
            self._uploaded[device] = gpu_stream.upload(self._key, device)
        return self._uploaded[device]

    def _taken(self, num_bytes: int) -> int:
        """The first block of the next `num_bytes`, which are now taken."""
        first, self.position = self.position, self.position - (-num_bytes // BLOCK_BYTES)
        return first


def add_normal_to_each(totals: Sequence[Tensor], *, std: float, stream: ChaChaStream) -> list[Tensor]:
    """`stream.add_normal` of one tensor after the other, at once: the same numbers, for tensors of one type and device.

    The tensors lie behind each other in one, each from a whole block of the key stream on, as if it were drawn by
    itself.
    """
    import torch

    sizes = [-(-total.numel() // _WORDS_PER_BLOCK) * _WORDS_PER_BLOCK for total in totals]
    flat = torch.zeros(sum(sizes), dtype=totals[0].dtype, device=totals[0].device)
    torch._foreach_copy_(_views(flat, sizes, totals), list(totals))
    return _views(stream.add_normal(flat, std=std), sizes, totals)


def _views(flat: Tensor, sizes: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    return [part[: one.numel()].view(one.shape) for part, one in zip(flat.split(list(sizes)), like, strict=True)]


def _box_muller_(out: Tensor, stream: ChaChaStream) -> None:
    """Fill `out`, of even length, with standard Gaussians."""
    import torch

    words = stream.uint64(len(out))
    words >>= np.uint64(11)
    uniform = torch.from_numpy(words.view(np.int64)).double().add_(1.0).mul_(2.0**-53)
    radius = uniform[0::2].log().mul_(-2.0).sqrt_()
    angle = uniform[1::2] * (2.0 * math.pi)
    torch.mul(radius, angle.cos(), out=out[0::2])
    torch.mul(radius, angle.sin_(), out=out[1::2])


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise InputError(f"key: expected {KEY_BYTES} bytes, got {len(key)}.", remedy="Draw one with fresh_key().")
    return key
