"""The cache of a shard's constants: which one may be used, and how it is filled and read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.core.method import Constants
from privshard.store.rows import RowKind, Rows, open_rows, writing
from privshard.training.outputs import Behind, Held, Layouts, Output, Place, RowLayout, Stored
from privshard.training.room import Room, Where, choose, free_room

_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}
_LOAD_BYTES = 1 << 28
_FORMAT = "privshard constants 1"

Fill = Callable[[Place], Constants | None]


@dataclass(frozen=True)
class CacheKey:
    """What a row of a cache is a function of, beside the example itself.

    base: digest of the base, transform included. transform: digest of the eval transform alone, so that a difference
    can be named. method: its name, options included. dtype: of the frozen computation. copies: images of one example.
    augmentation: what makes the others of them, "" where there is one.
    """

    base: str
    transform: str
    method: str
    dtype: str
    copies: int = 1
    augmentation: str = ""

    def facts(self) -> dict[str, str]:
        """As the facts of a row file."""
        return {"format": _FORMAT, **{name: str(value) for name, value in asdict(self).items()}}


def obtain(
    ids: Sequence[str],
    *,
    path: Path | None,
    key: CacheKey,
    asked: str,
    device: str,
    fill: Fill,
    num_threads: int = 1,
    room: Room | None = None,
) -> Constants | None:
    """The constants of a shard's examples, from its cache where that holds exactly them; None without an example.

    A cache of another base, transform, method, dtype or number of copies, of other examples, or one that is truncated
    or damaged, is never used: it is filled again by `fill`, whole or not at all. The result has `key.copies` rows an
    example; it lies on `device`, in the CPU's memory, or is mapped from the file (`room.choose`), which changes no bit
    of it.

    ids: of the examples, in order. path: of the cache; None where the workspace has no local disk. asked:
    `execution.cache`. fill: given a place, computes all constants into it. num_threads: threads that compute digests.
    ResourceError where "disk" is asked for and the disk fails or is full; "auto" then stores nothing.
    """
    if not ids:
        return None
    room = free_room(device, path) if room is None else room
    room = replace(room, disk=None) if path is None else room
    if path is not None and asked != "memory":
        found = find(path, key=key, ids=ids)
        if found is not None:
            where, _ = choose(asked, num_bytes=len(ids) * found.row_bytes, room=room)
            constants = load(found, where=where, device=device, copies=key.copies, num_threads=num_threads)
            if constants is not None:
                return constants
    try:
        return _filled(ids, path=path, key=key, asked=asked, device=device, fill=fill, threads=num_threads, room=room)
    except ResourceError:
        if asked != "auto":
            raise
        return _filled(ids, path=None, key=key, asked="memory", device=device, fill=fill, threads=1, room=room)


def find(path: Path, *, key: CacheKey, ids: Sequence[str]) -> Rows | None:
    """The cache at `path` where it is whole, of this key, and about exactly these examples in this order; else None.

    Whether its rows are undamaged is for `load` to say, which reads them anyway.
    """
    try:
        rows = open_rows(path)
    except VerificationError:
        return None
    return rows if rows.facts == key.facts() and rows.ids == tuple(ids) else None


def require(path: Path, *, key: CacheKey, num_threads: int = 1) -> Rows:
    """The cache at `path`, which somebody named: InputError where it was filled for another base, transform, method,
    dtype or number of copies, showing both sides; VerificationError where it isn't whole or a row is damaged."""
    rows, wanted = open_rows(path), key.facts()
    odd = [name for name in sorted(wanted) if rows.facts.get(name) != wanted[name]]
    if odd:
        shown = "; ".join(f"{name}: expected {wanted[name]!r}, got {rows.facts.get(name)!r}" for name in odd)
        raise InputError(
            f"cache {path}: it was filled for something else: {shown}.",
            remedy="Fill it again for this base and method, or use what it was filled for.",
        )
    damaged = rows.damaged(num_threads=num_threads)
    if damaged:
        raise VerificationError(
            f"cache {path}: {len(damaged)} of {len(rows.ids)} rows changed since they were written.",
            remedy="Delete it; it is filled again when it is needed.",
        )
    return rows


def load(rows: Rows, *, where: Where, device: str, copies: int = 1, num_threads: int = 1) -> Constants | None:
    """The constants of a found cache, `copies` rows an example; None where a row is damaged.

    where: "device" and "memory" copy them there, "disk" maps them: pages come and go with what is read.
    """
    if rows.damaged(num_threads=num_threads):
        return None
    mapped = _mapped(rows, copies)
    if where == "disk":
        return mapped
    layouts = {name: RowLayout(tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in mapped.items()}
    total = len(rows.ids) * copies
    held = Held(layouts, num_rows=total, device=device if where == "device" else "cpu")
    step = max(1, _LOAD_BYTES // max(1, rows.row_bytes // copies))
    for start in range(0, total, step):
        held.put(start, {name: tensor[start : start + step] for name, tensor in mapped.items()})
    return held.finish()


def _filled(
    ids: Sequence[str],
    *,
    path: Path | None,
    key: CacheKey,
    asked: str,
    device: str,
    fill: Fill,
    threads: int,
    room: Room,
) -> Constants | None:
    """Fill anew, to where they are kept."""
    kept: list[Where] = []

    def place(layouts: Layouts) -> Output:
        num_rows = len(ids) * key.copies
        num_bytes = num_rows * sum(layout.row_bytes for layout in layouts.values())
        where, stored = choose(asked, num_bytes=num_bytes, room=room)
        kept.append(where)
        outputs: list[Output] = []
        if where != "disk":
            outputs.append(Held(layouts, num_rows=num_rows, device=device if where == "device" else "cpu"))
        if where == "device" and not stored:
            return outputs[0]
        pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="privshard-cache"))
        if stored:
            assert path is not None
            kinds = {name: _kind(layout, key.copies) for name, layout in layouts.items()}
            writer = writing(path, ids=ids, kinds=kinds, facts=key.facts(), num_threads=threads)
            outputs.append(Stored(opened.enter_context(writer), copies=key.copies))
        return _Both(outputs[0], Behind(outputs[1:], pool)) if where == "device" else Behind(outputs, pool)

    with ExitStack() as opened, ExitStack() as stack:  # the thread ends before the file is sealed
        constants = fill(place)
    if kept == ["disk"]:
        assert path is not None
        return _mapped(open_rows(path), key.copies)
    return constants


class _Both:
    """Rows that stay on the device, and go elsewhere too."""

    def __init__(self, near: Output, far: Output) -> None:
        self._near, self._far = near, far

    def put(self, start: int, part: Constants) -> None:
        self._near.put(start, part)
        self._far.put(start, part)

    def finish(self) -> Constants:
        self._far.finish()
        return self._near.finish()


def _kind(layout: RowLayout, copies: int) -> RowKind:
    return RowKind(_NAMES[layout.dtype], layout.shape if copies == 1 else (copies, *layout.shape))


def _mapped(rows: Rows, copies: int) -> Constants:
    """Tensors that share the file's pages, one row an image."""
    return {name: _tensor(rows, name, kind, copies) for name, kind in rows.kinds.items()}


def _tensor(rows: Rows, name: str, kind: RowKind, copies: int) -> Tensor:
    shape = kind.shape if copies == 1 else kind.shape[1:]
    flat = torch.from_numpy(rows.raw(name).reshape(-1)).view(_TYPES[kind.dtype])
    return flat.view(len(rows.ids) * copies, *shape)
