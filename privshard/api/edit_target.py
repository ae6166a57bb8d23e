"""What edits are applied to: a workspace's composed tangent model, or a plain model file with edits beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from privshard.api import worker
from privshard.api.composed import combined, read_edit
from privshard.api.reading import current_model
from privshard.api.setup import Setup, flags_of, stored_recipe
from privshard.core.errors import InputError
from privshard.core.execution import ExecutionFlags
from privshard.data.images import image_batches
from privshard.editing import sparse
from privshard.editing.places import Kind, Place, check_places, default_places, parse_places
from privshard.editing.tail import EditedTail, Tail, TangentTail, WeightTail
from privshard.models.base import Base
from privshard.models.plain import load_plain
from privshard.store.edits import edit_ids, load_edit, plain_store
from privshard.store.objects import ObjectStore
from privshard.store.views import ModelVersion
from privshard.store.workspace import Workspace
from privshard.tangent.linearize import first_linearized


@dataclass(frozen=True, eq=False)
class Target:
    """A model that can be edited.

    point: of the tangent space, by name; None for a plain model. store: where its edits lie. edits: those in effect,
    by id. first_block: the first that may be edited.
    """

    place: str
    base: Base
    point: Mapping[str, Tensor] | None
    classes: tuple[str, ...]
    first_block: int
    store: ObjectStore
    edits: Mapping[str, sparse.SparseEdit]
    flags: ExecutionFlags
    device: str
    workspace: Workspace | None = None
    setup: Setup | None = None
    model: ModelVersion | None = None

    @property
    def depth(self) -> int:
        """How many blocks the base has."""
        return len(self.base.view.blocks)

    @property
    def components(self) -> tuple[str, ...]:
        """The shard components that the model is composed of."""
        return tuple(self.model.composition.averaged) if self.model else ()

    def places(self, text: str | None, *, kind: Kind = "ffn") -> tuple[Place, ...]:
        """The places that `text` names, or the default ones: of one kind, as late as the model allows."""
        if text is not None:
            return check_places(parse_places(text, depth=self.depth), depth=self.depth, first_block=self.first_block)
        usual = default_places(self.depth, kind=kind)
        if usual[0].block >= self.first_block:
            return usual
        blocks = range(max(self.first_block, self.depth - 3), self.depth)
        return tuple(Place(block, kind) for block in blocks)

    def tail(self, places: Sequence[Place]) -> Tail:
        """The model without its edits, from the first block that these places, or an edit in effect, change."""
        view = self.base.view
        if self.point is not None:
            return TangentTail(view, self.first_block, self.point)
        edited = [int(name.split(".")[1]) for edit in self.edits.values() for name in edit]
        return WeightTail(view, min([*edited, *(place.block for place in places)]))

    def with_edits(self, tail: Tail) -> Tail:
        """`tail` in the presence of the edits in effect."""
        added = sparse.total([self.edits[name] for name in sorted(self.edits)])
        held = {name: torch.from_numpy(array).to(self.device).unsqueeze(0) for name, array in added.items()}
        return EditedTail(tail, held) if held else tail

    def class_of(self, label: str) -> int:
        """The index of a label: of a class by name; for a plain model, whose classes have no names, a number."""
        if label in self.classes:
            return self.classes.index(label)
        shown = ", ".join(self.classes[:10]) + (f", … {self.classes[-1]}" if len(self.classes) > 10 else "")
        raise InputError(f"label: expected one of the {len(self.classes)} classes {shown}; got {label!r}.")

    @torch.no_grad()
    def tokens(self, images: Sequence[bytes], tail: Tail) -> Tensor:
        """What enters the tail, computed once: (B, N, D)."""
        view, batch = self.base.view, self.flags.micro_batch
        parts = [
            view.tokens(pixels.to(self.device), first_block=tail.first_block)
            for pixels in image_batches(images, transform=self.base.transform, batch_size=batch)
        ]
        if not parts:
            return torch.zeros(0, 1, view.head.in_features, device=self.device)
        return torch.cat(parts)


@contextmanager
def open_target(place: str, *, model: str | None, write: bool = False) -> Iterator[Target]:
    """The workspace at `place`, or with `model` (timm's name) the plain model file there.

    write: hold the workspace's lock. InputError for a workspace whose method has no linearized blocks.
    """
    if model is not None:
        yield _plain(place, model)
        return
    if Path(place).is_file():
        raise InputError(
            f"{place}: expected a workspace, got a file.",
            remedy="For a plain model file, name its model: --model NAME.",
        )
    with Workspace.open(place) as workspace:
        if write:
            with workspace.hold():
                yield _of_workspace(workspace)
        else:
            yield _of_workspace(workspace)


def plain_edits(store: ObjectStore, *, base: str) -> dict[str, sparse.SparseEdit]:
    """The edits beside a plain model; InputError where one is of another model."""
    found = {}
    for edit in edit_ids(store):
        record, arrays, header = load_edit(store, edit)
        if record.base != base:
            raise InputError(
                f"{store.root}: edit {edit[:12]} is of another model ({record.base[:12]}, not {base[:12]}).",
                remedy="The model file was replaced: move the edits of the old one away.",
            )
        found[edit] = sparse.from_arrays(arrays, header, place=edit)
    return found


def _plain(path: str, model: str) -> Target:
    base = load_plain(path, model=model)
    _check_heads(base)
    flags = ExecutionFlags()
    device, store = worker.pick_device(flags), plain_store(path)
    base.view.to(device)
    return Target(
        place=path,
        base=base,
        point=None,
        classes=tuple(map(str, range(base.spec.num_classes))),
        first_block=0,
        store=store,
        edits=plain_edits(store, base=base.digest),
        flags=flags,
        device=device,
    )


def _check_heads(base: Base) -> None:
    if base.view.head_dist is not None:
        raise InputError(
            f"head_dist: expected a model with one head to edit, got {base.spec.model} with two.",
            remedy="Edit a model without a distillation token.",
        )


def _of_workspace(workspace: Workspace) -> Target:
    setup, model = Setup.load(workspace), current_model(workspace)
    if setup.method.name != "tangent":
        raise InputError(
            f"Workspace {workspace.root}: expected the method tangent, whose blocks are linearized, got "
            f"{setup.method.name}.",
            remedy="Edit a workspace that was trained with method.name=tangent, or a plain model file.",
        )
    if setup.method.options.get("blocks") == "all":
        raise InputError(
            f"Workspace {workspace.root}: expected a number of linearized blocks, got all, which moves the embeddings "
            "too: they come before what an edit computes once.",
            remedy="Edit a workspace that was trained with as many blocks as there are, or fewer.",
        )
    flags = flags_of(stored_recipe(workspace))
    device = worker.pick_device(flags)
    base = worker.open_base(setup.base, None, digest=setup.base_digest, objects=workspace.objects)
    _check_heads(base)
    base.view.to(device)
    weights = model.composition.averaged
    moved = combined(workspace, weights, combine=model.composition.combine)
    point = {name: torch.from_numpy(array).to(device) for name, array in moved.items()}
    for name, tensor in base.core.items():
        point[name] = point[name] + tensor.to(device) if name in point else tensor.to(device)
    return Target(
        place=workspace.root,
        base=base,
        point=point or None,
        classes=setup.classes,
        first_block=first_linearized(base.view, setup.method.options.get("blocks", 1)),
        store=workspace.objects,
        edits={name: read_edit(workspace, name) for name in sorted(model.composition.added)},
        flags=flags,
        device=device,
        workspace=workspace,
        setup=setup,
        model=model,
    )
