"""Models of any depth from the first components, without training, torch or timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from privshard.decomposition.expansion import expand
from privshard.decomposition.files import Decomposition, write_decomposition
from privshard.decomposition.stacks import Stack, args_with_depth
from privshard.models.architecture import Architecture, content_digest, model_header
from privshard.store.mapped import new_file


@dataclass(frozen=True)
class Recomposed:
    """What was written. parameters: of the plain model; stored: numbers in the file."""

    architecture: Architecture
    digest: str
    depths: tuple[int, ...]
    components: int
    parameters: int
    stored: int


def write_free(
    path: Path,
    decomposition: Decomposition,
    *,
    source: str,
    threads: int = 1,
    check: Callable[[], None] = lambda: None,
) -> Recomposed:
    """Write a plain timm model: every block's weights are W_l = sum_n a(l, n) A_n over all given components.

    decomposition: already cut to depth and components (`Decomposition.first`). source: the digest of the whole one.
    check: called before the file is published; what it raises leaves no file.
    Guaranteed: the same decomposition gives the same file, bit for bit. The weights may then be trained freely.

    Test: tests/decomposition/test_recompose.py.
    """
    architecture = model_architecture(decomposition, mode="free", source=source)
    shapes = {name: tuple(array.shape) for name, array in decomposition.plain[0].items()}
    for stack in decomposition.stacks:
        shapes |= {
            stack.full_name(block, name): shape for block in range(stack.depth) for name, shape in stack.shapes.items()
        }
    with new_file(path, shapes, model_header(architecture, "0" * 64)) as new:
        for name, array in decomposition.plain[0].items():
            new.arrays[name][...] = array
        for stack in decomposition.stacks:
            _expand_stack(decomposition, stack, new.arrays, threads=threads)
        digest = content_digest(new.arrays, architecture.to_json())
        check()
        new.metadata.update(model_header(architecture, digest))
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    return _recomposed(decomposition, architecture, digest, parameters=total, stored=total)


def write_tied(path: Path, decomposition: Decomposition, *, source: str) -> Recomposed:
    """Write a tied model: the components themselves, fixed coefficients, and the depth to expand them to."""
    architecture = model_architecture(decomposition, mode="tied", source=source)
    tied = replace(decomposition, architecture=architecture)
    digest = write_decomposition(path, tied)
    stored = sum(array.size for array in tied.tensors().values())
    return _recomposed(tied, architecture, digest, parameters=num_parameters(tied), stored=stored)


def expanded(decomposition: Decomposition, *, threads: int = 1) -> dict[str, np.ndarray]:
    """The weights of the plain model, in memory: the bits that `write_free` writes."""
    state = {name: np.array(array) for name, array in decomposition.plain[0].items()}
    for stack in decomposition.stacks:
        for name, shape in stack.shapes.items():
            for block in range(stack.depth):
                state[stack.full_name(block, name)] = np.empty(shape, dtype=np.float32)
        _expand_stack(decomposition, stack, state, threads=threads)
    return state


def num_parameters(decomposition: Decomposition) -> int:
    """Parameters of the plain model at the decomposition's depths."""
    blocks = sum(
        stack.depth * sum(int(np.prod(shape)) for shape in stack.shapes.values()) for stack in decomposition.stacks
    )
    return blocks + sum(array.size for array in decomposition.plain[0].values())


def model_architecture(decomposition: Decomposition, *, mode: str, source: str) -> Architecture:
    """The architecture at the decomposition's depths, saying where it comes from."""
    architecture = decomposition.architecture
    made_from = {
        "decomposition": source,
        "components": decomposition.num_components,
        "mode": mode,
        "basis": decomposition.basis.to_json(),
        "facts": dict(decomposition.facts),
    }
    args = args_with_depth(architecture.args, decomposition.stacks)
    return replace(architecture, args=args, made_from=made_from)


def _expand_stack(decomposition: Decomposition, stack: Stack, state: Mapping[str, np.ndarray], *, threads: int) -> None:
    components = decomposition.components[stack.prefix]
    held = len(next(iter(components.values())))
    expand(
        decomposition.basis.coefficients(stack.depth, components=held),
        components,
        {name: [state[stack.full_name(block, name)] for block in range(stack.depth)] for name in stack.shapes},
        threads=threads,
    )


def _recomposed(
    decomposition: Decomposition, architecture: Architecture, digest: str, *, parameters: int, stored: int
) -> Recomposed:
    depths = tuple(stack.depth for stack in decomposition.stacks)
    return Recomposed(architecture, digest, depths, decomposition.num_components, parameters, stored)
