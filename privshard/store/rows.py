"""Row files: safetensors whose tensors have one row an example, beside the examples' ids; written in pieces, mapped
into memory, and rewritten without some of the rows. No tensor library is needed: a row is bytes.

Layout: the named tensors, the widest type first so that every one is aligned; then, under names that no tensor of the
caller's may have, `.digests` (SHA-256 of each row's bytes, in the order of the names) and `.ids` (UTF-8, zero-padded).
The metadata hold the caller's facts and `seal`, the SHA-256 of everything but the rows' own bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from privshard.core.errors import InputError, VerificationError
from privshard.store.disk import stream_whole

_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1}
_IDS, _DIGESTS, _SEAL, _DIGEST_BYTES = ".ids", ".digests", "seal", 32
_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class RowKind:
    """The type (a name of safetensors: F32, BF16, …) and shape of one row of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return _ITEM_BYTES[self.dtype] * prod(self.shape)


@dataclass(frozen=True)
class Rows:
    """An open row file. Nothing is read but its head, its ids and its digests, until rows are asked for."""

    path: Path
    ids: tuple[str, ...] = field(repr=False)
    kinds: Mapping[str, RowKind]
    facts: Mapping[str, str]
    _map: np.memmap = field(repr=False)
    _offsets: Mapping[str, int] = field(repr=False)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, over all tensors."""
        return sum(kind.row_bytes for kind in self.kinds.values())

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor, (rows, bytes of a row): a copy-on-write view of the file, paged in when it is used."""
        size, start = self.kinds[name].row_bytes, self._offsets[name]
        return np.asarray(self._map[start : start + len(self.ids) * size]).reshape(len(self.ids), size)

    def damaged(self, *, num_threads: int = 1) -> list[int]:
        """The rows whose bytes are not those that were written. Reads the whole file once, on `num_threads` threads.

        An empty list proves that every row holds what was written under its id, up to collisions of SHA-256: no bit
        flipped, no page was lost. It doesn't prove who wrote it: the digests are in the file and have no key.
        """
        blocks = [self.raw(name) for name in sorted(self.kinds)]
        stored = self._map[self._offsets[_DIGESTS] :][: len(self.ids) * _DIGEST_BYTES].reshape(-1, _DIGEST_BYTES)
        return np.flatnonzero((_digests(blocks, num_threads=num_threads) != stored).any(axis=1)).tolist()


class RowWriter:
    """Writes the rows of one file in pieces, in any order; every row once."""

    def __init__(
        self, file: BinaryIO, num_rows: int, kinds: Mapping[str, RowKind], starts: Mapping[str, int], num_threads: int
    ) -> None:
        self._file, self._kinds, self._starts, self._threads = file, kinds, starts, num_threads
        self.written = np.zeros(num_rows, dtype=bool)
        self.digests = np.zeros((num_rows, _DIGEST_BYTES), dtype=np.uint8)

    def put(self, start: int, blocks: Mapping[str, np.ndarray]) -> None:
        """Write consecutive rows from row `start` on: name -> their bytes, uint8 (rows, bytes of a row)."""
        num = len(next(iter(blocks.values())))
        for name, kind in self._kinds.items():
            expected = (num, kind.row_bytes)
            if blocks[name].shape != expected or blocks[name].dtype != np.uint8:
                raise InputError(f"rows of {name}: expected uint8 {expected}, got {blocks[name].shape}.")
            _write_at(self._file, self._starts[name] + start * kind.row_bytes, blocks[name])
        rows = slice(start, start + num)
        self.digests[rows] = _digests([blocks[name] for name in sorted(self._kinds)], num_threads=self._threads)
        self.written[rows] = True


@contextmanager
def writing(
    path: Path, *, ids: Sequence[str], kinds: Mapping[str, RowKind], facts: Mapping[str, str], num_threads: int = 1
) -> Iterator[RowWriter]:
    """A writer whose file appears at `path` when the block ends, whole or not at all.

    ids: of the examples, in the rows' order. kinds: name -> what a row of it is. facts: kept in the file's head.
    num_threads: threads that compute digests. InputError where rows are missing at the end; ResourceError where the
    disk fails or is full.
    """
    encoded = _encode_ids(ids)
    with stream_whole(path) as file:
        head, offsets = _head(kinds, encoded, facts, seal="0" * 64)
        starts = {name: len(head) + offset for name, offset in offsets.items()}
        file.truncate(starts[_IDS] + encoded.nbytes)
        writer = RowWriter(file, len(ids), kinds, starts, num_threads)
        yield writer
        missing = int((~writer.written).sum())
        if missing:
            raise InputError(f"{path}: expected {len(ids)} rows, {missing} of them were never written.")
        seal = _seal_of(kinds, encoded, facts, writer.digests)
        _write_at(file, starts[_DIGESTS], writer.digests)
        _write_at(file, starts[_IDS], encoded)
        _write_at(file, 0, np.frombuffer(_head(kinds, encoded, facts, seal=seal)[0], dtype=np.uint8))


def open_rows(path: Path) -> Rows:
    """Open a row file that is whole. VerificationError where it is missing, truncated, foreign, or its head, ids or
    digests changed; the rows themselves are checked by `Rows.damaged`."""
    try:
        data = np.memmap(path, dtype=np.uint8, mode="c")
        size = int.from_bytes(data[:8].tobytes(), "little")
        head = json.loads(data[8 : 8 + size].tobytes())
        facts = dict(head.pop("__metadata__"))
        seal = facts.pop(_SEAL)
        offsets = {name: 8 + size + entry["data_offsets"][0] for name, entry in head.items()}
        kinds = {
            name: RowKind(entry["dtype"], tuple(entry["shape"][1:])) for name, entry in head.items() if name[0] != "."
        }
        num, width = head[_IDS]["shape"]
        encoded = data[offsets[_IDS] :][: num * width].reshape(num, width)
        digests = data[offsets[_DIGESTS] :][: num * _DIGEST_BYTES].reshape(num, _DIGEST_BYTES)
        whole = len(data) == offsets[_IDS] + num * width
        same = data[: 8 + size].tobytes() == _head(kinds, encoded, facts, seal=seal)[0]
        if not whole or not same or seal != _seal_of(kinds, encoded, facts, digests):
            raise VerificationError(f"{path}: expected a whole row file, got a truncated or changed one.")
        ids = tuple(bytes(row).rstrip(b"\0").decode() for row in encoded)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise VerificationError(f"{path}: expected a row file, got none that can be read ({error}).") from error
    return Rows(path, ids, kinds, facts, data, offsets)


def rewrite(path: Path, *, keep: Collection[str], num_threads: int = 1) -> int:
    """Rewrite a row file without every row whose id is not in `keep`, in the same order; how many rows went.

    The file is replaced whole, and only if every row that stays is undamaged; nothing is written where nothing goes.
    At most about 64 MiB are in memory. VerificationError for a file that isn't a whole, undamaged one.
    """
    found = open_rows(path)
    kept = [row for row, identity in enumerate(found.ids) if identity in keep]
    if len(kept) == len(found.ids):
        return 0
    if set(found.damaged(num_threads=num_threads)) & set(kept):
        raise VerificationError(f"{path}: expected undamaged rows, got some that changed since they were written.")
    ids = [found.ids[row] for row in kept]
    step = max(1, _CHUNK_BYTES // max(1, found.row_bytes))
    with writing(path, ids=ids, kinds=found.kinds, facts=found.facts, num_threads=num_threads) as writer:
        for start in range(0, len(kept), step):
            rows = kept[start : start + step]
            writer.put(start, {name: found.raw(name)[rows] for name in found.kinds})
    return len(found.ids) - len(kept)


def _encode_ids(ids: Sequence[str]) -> np.ndarray:
    """The ids as uint8 (rows, longest id), zero-padded."""
    if len(set(ids)) != len(ids) or not all(ids) or any("\0" in name for name in ids):
        raise InputError("row ids: expected every id once, none of them empty.")
    raw = [name.encode() for name in ids]
    width = max((len(item) for item in raw), default=1)
    return np.frombuffer(b"".join(item.ljust(width, b"\0") for item in raw), dtype=np.uint8).reshape(len(raw), width)


def _head(
    kinds: Mapping[str, RowKind], encoded: np.ndarray, facts: Mapping[str, str], *, seal: str
) -> tuple[bytes, dict[str, int]]:
    """The head of a safetensors file, its length before it, and each tensor's offset behind it."""
    num = len(encoded)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        name: (kind.dtype, (num, *kind.shape))
        for name, kind in sorted(kinds.items(), key=lambda item: (-_ITEM_BYTES[item[1].dtype], item[0]))
    }
    shapes |= {_DIGESTS: ("U8", (num, _DIGEST_BYTES)), _IDS: ("U8", encoded.shape)}
    entries: dict[str, Any] = {"__metadata__": {**facts, _SEAL: seal}}
    offsets, at = {}, 0
    for name, (dtype, shape) in shapes.items():
        offsets[name], end = at, at + _ITEM_BYTES[dtype] * prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text, offsets


def _seal_of(kinds: Mapping[str, RowKind], encoded: np.ndarray, facts: Mapping[str, str], digests: np.ndarray) -> str:
    state = hashlib.sha256(_head(kinds, encoded, facts, seal="")[0])
    state.update(encoded.tobytes())
    state.update(digests.tobytes())
    return state.hexdigest()


def _digests(blocks: Sequence[np.ndarray], *, num_threads: int) -> np.ndarray:
    """SHA-256 of each row over `blocks`, each (rows, bytes), as uint8 (rows, 32)."""

    def digest(row: int) -> bytes:
        state = hashlib.sha256()
        for block in blocks:
            state.update(block[row])
        return state.digest()

    num = len(blocks[0]) if blocks else 0
    if num_threads > 1 and num > 1:
        with ThreadPoolExecutor(num_threads, thread_name_prefix="privshard-digest") as pool:
            found = list(pool.map(digest, range(num), chunksize=max(1, num // (4 * num_threads))))
    else:
        found = [digest(row) for row in range(num)]
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(num, _DIGEST_BYTES)


def _write_at(file: BinaryIO, offset: int, block: np.ndarray) -> None:
    """All bytes of `block` at `offset`."""
    view = np.ascontiguousarray(block).reshape(-1).data
    while view.nbytes:
        done = os.pwrite(file.fileno(), view, offset)
        view, offset = view[done:], offset + done
