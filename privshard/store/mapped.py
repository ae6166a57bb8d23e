"""safetensors files as maps of memory: read without a copy, written in place and published whole."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np

from privshard.core.errors import InputError
from privshard.store.disk import explain, make_folder

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class NewFile:
    """A file that is being written. arrays: float32, zero at first, to be filled in place.

    `metadata` may be replaced by texts of the same lengths: for digests of what the arrays then hold.
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name, read-only views of the file; what isn't touched isn't read.

    Raises InputError for a file that is no whole safetensors file, or holds numbers that numpy doesn't have (bfloat16).
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"Expected a safetensors file at {path}: {error}.") from None
    try:
        begin = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:begin])
        header.pop("__metadata__", None)
        return {name: _view(data, begin, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"Expected a whole safetensors file of plain numbers at {path}: {error}.", remedy="Make it again."
        ) from None


@contextmanager
def new_file(path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> Iterator[NewFile]:
    """A safetensors file of float32 arrays, filled in place while the context lasts, then published whole.

    Nothing appears at `path` where the context ends with an error. A disk that is full or may not be written is a
    ResourceError. A power failure soon afterwards may lose the file; digests then tell.
    """
    sizes = {name: 4 * prod(shape) for name, shape in shapes.items()}
    names = sorted(shapes)
    begins = dict(zip(names, np.cumsum([0, *(sizes[name] for name in names)]).tolist(), strict=False))
    entries: dict[str, Any] = {
        name: {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [begins[name], begins[name] + sizes[name]]}
        for name in names
    }
    header = _header(entries, metadata)
    total = len(header) + sum(sizes.values())
    temporary = path.with_name(f".{path.name}.{token_hex(8)}.tmp")
    try:
        make_folder(path.parent)
        with open(temporary, "x+b") as file:
            os.posix_fallocate(file.fileno(), 0, total)
            data = mmap.mmap(file.fileno(), total)
            flat = np.frombuffer(data, dtype=np.uint8, offset=len(header))
            arrays = {
                name: flat[begins[name] : begins[name] + sizes[name]].view(np.float32).reshape(shapes[name])
                for name in names
            }
            made = NewFile(arrays, dict(metadata))
            yield made
            final = _header(entries, made.metadata)
            assert len(final) == len(header)
            data[: len(final)] = final
        os.replace(temporary, path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Length and header, padded so that arrays are aligned."""
    text = json.dumps({"__metadata__": dict(metadata), **entries}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _view(data: mmap.mmap, begin: int, entry: Mapping[str, Any]) -> np.ndarray:
    kind = np.dtype(_TYPES[entry["dtype"]])
    first, last = entry["data_offsets"]
    if last - first != kind.itemsize * prod(entry["shape"]) or begin + last > len(data):
        raise ValueError("it is cut short")
    flat = np.frombuffer(data, dtype=np.uint8, offset=begin + first, count=last - first)
    return (flat if (begin + first) % kind.itemsize == 0 else flat.copy()).view(kind).reshape(entry["shape"])
