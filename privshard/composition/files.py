"""Component files: the headers of safetensors on disk, checked to describe displacements of one kind.

Only numpy is needed, and a header costs no tensor: commands that never build a model start without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privshard.core.errors import InputError
from privshard.store.tensors import open_lazy

ABSENT = "absent"


@dataclass(frozen=True)
class Header:
    """What a component file says about itself: base and space from its metadata, and the shapes of its tensors."""

    base: str
    space: str
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ComponentFiles:
    """Open component files of one kind, in sorted order of their ids."""

    header: Header
    handles: Mapping[str, Any]

    @property
    def ids(self) -> tuple[str, ...]:
        """Component ids, sorted."""
        return tuple(self.handles)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted."""
        return tuple(sorted(self.header.shapes))


@contextmanager
def open_components(paths: Mapping[str, Path]) -> Iterator[ComponentFiles]:
    """Open at least one component file (id -> path) for reading tensor by tensor.

    Guarantees that all of them have the same base, space, tensor names and shapes, in fp32; otherwise InputError
    shows both sides, or says what a file lacks. A file that is missing or not safetensors is a VerificationError.
    """
    if not paths:
        raise InputError("Expected at least one component file, got none.")
    with ExitStack() as stack:
        handles = {name: stack.enter_context(open_lazy(Path(paths[name]))) for name in sorted(paths)}
        headers = {name: _header(name, handle) for name, handle in handles.items()}
        first, *others = headers
        for other in others:
            _check_same(first, headers[first], other, headers[other])
        yield ComponentFiles(headers[first], handles)


def _header(name: str, handle: Any) -> Header:
    shapes = {}
    for tensor in handle.keys():  # noqa: SIM118 (not a mapping)
        stored = handle.get_slice(tensor)
        if stored.get_dtype() != "F32":
            raise InputError(f"Component {name}, tensor {tensor}: expected F32, got {stored.get_dtype()}.")
        shapes[tensor] = tuple(stored.get_shape())
    metadata = handle.metadata() or {}
    if not {"base", "space"} <= metadata.keys():
        raise InputError(
            f"Component {name}: expected metadata that names its base and its space, got {sorted(metadata)}.",
            remedy="Write components with privshard.store.components.save_component.",
        )
    return Header(metadata["base"], metadata["space"], shapes)


def _check_same(first: str, mine: Header, other: str, theirs: Header) -> None:
    left, right = _flat(mine), _flat(theirs)
    keys = [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)]
    if keys:
        shown = "; ".join(f"{key}: {left.get(key, ABSENT)} against {right.get(key, ABSENT)}" for key in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise InputError(
            f"Components {first} and {other} are of different kinds: {shown}{more}.",
            remedy="Only components of one base and one space, learnt by the same method, can be combined.",
        )


def _flat(header: Header) -> dict[str, object]:
    return {"base": header.base, "space": header.space, **header.shapes}
