"""Generator files and merged weights: safetensors whose headers say which base and which generator they are about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.core.digest import tensors_digest
from privshard.core.errors import InputError
from privshard.core.model import BaseSpec
from privshard.store.objects import ObjectStore
from privshard.store.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    import numpy as np

GENERATOR = "privshard-generator-1"
MERGED = "privshard-merged-1"
BASE = "privshard-base-1"
_KEYS = ("format", "base", "base_spec", "method", "options", "sources", "classes")


@dataclass(frozen=True)
class Header:
    """What a file of either kind says about itself, all of it public.

    format: GENERATOR or MERGED. base, base_spec: the base by digest and how to rebuild it. method, options: how the
    residual was learnt. sources: what it consists of: component id, or digest of a generator's parameters -> weight.
    """

    format: str
    base: str
    base_spec: BaseSpec
    method: str
    options: Mapping[str, Any]
    sources: Mapping[str, float]
    classes: tuple[str, ...]

    def to_metadata(self) -> dict[str, str]:
        """Strings by name, as safetensors keeps them."""
        values = {
            "base_spec": self.base_spec.to_json(),
            "options": dict(self.options),
            "sources": dict(self.sources),
            "classes": list(self.classes),
        }
        plain = {"format": self.format, "base": self.base, "method": self.method}
        return plain | {name: json.dumps(value, sort_keys=True) for name, value in values.items()}

    def about(self) -> str:
        """One clause for messages: what was learnt, and on which base."""
        sources = ", ".join(name[:12] for name in sorted(self.sources))
        return f"{self.method} ({sources}) on base {self.base_spec.model} {self.base[:16]}"


def read_header(path: Path) -> Header | None:
    """The header of a generator file or of merged weights; None for any other safetensors file."""
    _, metadata = _load(path)
    return _header(metadata)


def save_file(path: Path, header: Header, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays under their header, whole or not at all."""
    path = Path(path)
    save_tensors(ObjectStore(str(path.parent)), path.name, arrays, header.to_metadata())


def save_base(path: Path, digest: str, spec: BaseSpec, arrays: Mapping[str, np.ndarray], *, exact: bool) -> None:
    """Write plain weights of a base, with the digest that they have, or would have but for rounding."""
    path = Path(path)
    metadata = {"format": BASE, "base": digest, "base_spec": json.dumps(spec.to_json(), sort_keys=True)}
    save_tensors(ObjectStore(str(path.parent)), path.name, arrays, metadata | {"exact": json.dumps(exact)})


def load_file(path: Path, *, format: str) -> tuple[Header, dict[str, np.ndarray]]:
    """A file of the given format. InputError for any other file, saying what it is; VerificationError for one that is
    missing or not whole."""
    arrays, metadata = _load(path)
    header = _header(metadata)
    wanted = {GENERATOR: "a generator file", MERGED: "merged weights"}[format]
    if header is None or header.format != format:
        found = "weights without privshard's header" if header is None else f"{header.format}, {header.about()}"
        raise InputError(f"{path}: expected {wanted} ({format}), got {found}.")
    return header, arrays


def generator_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """What names a generator: its parameters, the head's displacement included."""
    return tensors_digest(arrays, "generator")


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a safetensors file, found none.")
    return load_tensors(ObjectStore(str(path.parent)), path.name)


def _header(metadata: Mapping[str, str]) -> Header | None:
    if metadata.get("format") not in (GENERATOR, MERGED) or not set(_KEYS) <= metadata.keys():
        return None
    value = {name: json.loads(metadata[name]) for name in ("base_spec", "options", "sources", "classes")}
    return Header(
        format=metadata["format"],
        base=metadata["base"],
        base_spec=BaseSpec(**value["base_spec"]),
        method=metadata["method"],
        options=value["options"],
        sources=value["sources"],
        classes=tuple(value["classes"]),
    )
