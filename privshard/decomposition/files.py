"""Decomposition files: components, plain parts and their header, in one safetensors file.

`<prefix>.components.<name>` (K, …) are the components of a stack; `plain.<phase>.<name>` is what isn't in a stack, as
it was when that phase of the training ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from privshard.core.errors import InputError
from privshard.decomposition.basis import Basis
from privshard.decomposition.stacks import Stack, with_depths
from privshard.models.architecture import HEADER, Architecture, content_digest, read_header
from privshard.store.mapped import map_tensors, new_file

FILE_NAME = "decomposition.safetensors"
_KIND = "decomposition"


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A decomposed model. architecture: of the model at its own depth.

    counts: components after each phase, rising; the last is how many there are. components: prefix -> name -> (K, …);
    a stack of fewer blocks than components may have fewer. plain: for each phase, the parameters outside the stacks.
    """

    architecture: Architecture
    basis: Basis
    stacks: tuple[Stack, ...]
    counts: tuple[int, ...]
    components: Mapping[str, Mapping[str, np.ndarray]]
    plain: Sequence[Mapping[str, np.ndarray]]
    digest: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_components(self) -> int:
        """How many components were trained."""
        return self.counts[-1]

    def phase_of(self, components: int) -> int:
        """The phase whose plain parts belong to a model of the first `components`: the one that trained the last."""
        if components < 1 or components > self.num_components:
            raise InputError(
                f"components: expected 1 to {self.num_components}, which were trained, got {components}.",
                remedy="Ask for fewer, or train more with `privshard decompose`.",
            )
        return next(phase for phase, count in enumerate(self.counts) if count >= components)

    def first(self, components: int | None, depths: Sequence[int] | None) -> Decomposition:
        """The decomposition of the first components alone, at other depths: what a tied model is. Copies nothing."""
        wanted = self.num_components if components is None else components
        phase = self.phase_of(wanted)
        return Decomposition(
            architecture=self.architecture,
            basis=self.basis,
            stacks=with_depths(self.stacks, depths),
            counts=(wanted,),
            components={
                prefix: {name: stack[:wanted] for name, stack in named.items()}
                for prefix, named in self.components.items()
            },
            plain=(self.plain[phase],),
            facts=self.facts,
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """All arrays under the file's names."""
        found = {
            f"{prefix}.components.{name}": array
            for prefix, named in self.components.items()
            for name, array in named.items()
        }
        for phase, plain in enumerate(self.plain):
            found |= {f"plain.{phase}.{name}": array for name, array in plain.items()}
        return found

    def description(self) -> dict[str, Any]:
        """The header, without the digest."""
        return {
            "architecture": self.architecture.to_json(),
            "basis": self.basis.to_json(),
            "stacks": [{"prefix": stack.prefix, "depth": stack.depth} for stack in self.stacks],
            "counts": list(self.counts),
            "facts": dict(self.facts),
        }


def write_decomposition(path: Path, decomposition: Decomposition) -> str:
    """Write the file, whole or not at all; its digest, over content and header."""
    arrays, description = decomposition.tensors(), decomposition.description()
    with new_file(path, {name: array.shape for name, array in arrays.items()}, _metadata(description, "0" * 64)) as new:
        for name, array in new.arrays.items():
            array[...] = arrays[name]
        digest = content_digest(new.arrays, description)
        new.metadata.update(_metadata(description, digest))
    return digest


@contextmanager
def open_decomposition(place: Path, *, check: bool = False) -> Iterator[Decomposition]:
    """The decomposition in a file, or in the folder that `privshard decompose` made, as maps of the file.

    check: also compare the digest, which reads everything. Raises InputError for any other file.
    """
    path = place / FILE_NAME if place.is_dir() else place
    if not path.exists():
        raise InputError(
            f"Expected a finished decomposition at {place}, found none.",
            remedy="Correct the path, or run `privshard decompose` to its end.",
        )
    header = read_header(path, key="decomposition")
    if header is None or header.get("kind") != _KIND:
        raise InputError(
            f"Expected a decomposition, got {'a plain file' if header is None else 'a ' + str(header.get('kind'))}: "
            f"{path}.",
            remedy="Make one with `privshard decompose RECIPE`.",
        )
    try:
        found = _parse(header, map_tensors(path))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: expected a true header of a decomposition, got {error}.") from None
    if check and content_digest(found.tensors(), found.description()) != found.digest:
        raise InputError(f"{path}: its header tells another digest than its content has.", remedy="Make it again.")
    yield found


def _parse(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Decomposition:
    components: dict[str, dict[str, np.ndarray]] = {entry["prefix"]: {} for entry in header["stacks"]}
    plain: list[dict[str, np.ndarray]] = [{} for _ in header["counts"]]
    for name, array in arrays.items():
        prefix, found, rest = name.partition(".components.")
        if found:
            components[prefix][rest] = array
        else:
            _, phase, rest = name.split(".", 2)
            plain[int(phase)][rest] = array
    return Decomposition(
        architecture=Architecture.from_json(header["architecture"]),
        basis=Basis(**header["basis"]),
        stacks=tuple(
            Stack(
                entry["prefix"],
                entry["depth"],
                {name: array.shape[1:] for name, array in components[entry["prefix"]].items()},
            )
            for entry in header["stacks"]
        ),
        counts=tuple(header["counts"]),
        components=components,
        plain=plain,
        digest=header["digest"],
        facts=header["facts"],
    )


def _metadata(description: Mapping[str, Any], digest: str) -> dict[str, str]:
    header = {"kind": _KIND, **description, "digest": digest}
    return {"format": "pt", HEADER: json.dumps(header, sort_keys=True)}
