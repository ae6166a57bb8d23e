"""Which editor makes an edit: what was asked for, or the default, with the settings that validation groups chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from privshard.api.edit_locators import load_locator
from privshard.api.edit_target import Target
from privshard.core.displacement import Space
from privshard.core.errors import InputError
from privshard.editing.heads import num_heads_kept
from privshard.editing.locator import Locator
from privshard.editing.masks import num_kept
from privshard.editing.places import Kind, Place, Slot, slots_of

Editor = Literal["heads", "gradient", "locator", "rank-one"]
EDITORS: tuple[Editor, ...] = get_args(Editor)
DEFAULT: Editor = "heads"

# Chosen on the validation groups of jobs/benchmarks/editing.py, as the README beside it says; all but the rate in the
# tangent space, which that benchmark doesn't reach.
KEEP: Mapping[Editor, float] = {"heads": 1.0, "gradient": 0.25, "locator": 0.25, "rank-one": 1.0}
LR: Mapping[Space, float] = {"weight": 2e-4, "tangent": 1e-3}
RANK_ONE_LR, RIDGE = 0.02, 1e-4


@dataclass(frozen=True, eq=False)
class Chosen:
    """An editor, where it may edit, and how strongly. locator: of the editor of that name alone."""

    editor: Editor
    places: tuple[Place, ...]
    slots: tuple[Slot, ...]
    keep: float
    lr: float
    locator: Locator | None = None


def choose(
    target: Target,
    *,
    editor: str | None = None,
    locator: str | None = None,
    places: str | None = None,
    keep: float | None = None,
    lr: float | None = None,
) -> Chosen:
    """The editor that was asked for, complete.

    Without `editor`, a locator is used where one is given, the gradient where `places` name feed-forward networks,
    and attention heads otherwise. InputError for an unknown editor, for what contradicts it, and for a `keep` that
    keeps nothing.
    """
    name = _named(target, editor, locator, places)
    found = None
    if name == "locator":
        if locator is None:
            raise InputError(
                "locator: expected a locator's file or digest for the editor locator, got none.",
                remedy="--locator F; train one with privshard edit train-locator.",
            )
        if places is not None:
            raise InputError("places: a locator brings its own; give one of the two.")
        found = load_locator(target, locator)
    elif locator is not None:
        raise InputError(f"locator: the editor {name} reads none; give one of the two.")
    if name == "rank-one":
        return _rank_one(target, places, keep, lr)
    kinds: Mapping[Editor, Kind] = {"heads": "attention"}
    where = found.places if found else target.places(places, kind=kinds.get(name, "ffn"))
    slots = slots_of(target.base.view, where)
    share = KEEP[name] if keep is None else keep
    if name == "heads":
        num_heads_kept(target.base.view, share, slots)
    else:
        num_kept(share, slots)
    rate = LR["weight" if target.point is None else "tangent"] if lr is None else lr
    return Chosen(name, where, slots, share, rate, found)


def _named(target: Target, editor: str | None, locator: str | None, places: str | None) -> Editor:
    if editor is not None:
        if editor not in EDITORS:
            raise InputError(f"editor: expected one of {', '.join(EDITORS)}, got {editor!r}.")
        return editor
    if locator is not None:
        return "locator"
    named = target.places(places) if places is not None else ()
    return "gradient" if any(place.kind == "ffn" for place in named) else DEFAULT


def _rank_one(target: Target, places: str | None, keep: float | None, lr: float | None) -> Chosen:
    if target.point is not None or target.workspace is not None:
        raise InputError(
            "editor rank-one: expected a plain model, whose weights an edit is added to; a workspace's edits act "
            "through its linearization, where the closed form does not hold.",
            remedy="Take another editor: the default works in both.",
        )
    if keep is not None:
        raise InputError("keep: the editor rank-one chooses no neurons, so that there is no share to keep.")
    where = target.places(places)[:1] if places is None else target.places(places)
    if len(where) != 1 or where[0].kind != "ffn":
        raise InputError(
            f"places: expected one feed-forward network for the editor rank-one, got {', '.join(map(str, where))}.",
            remedy="Such as ffn:8.",
        )
    return Chosen("rank-one", where, _outputs(target, where), KEEP["rank-one"], RANK_ONE_LR if lr is None else lr)


def _outputs(target: Target, places: Sequence[Place]) -> tuple[Slot, ...]:
    """The second matrices of feed-forward networks alone."""
    return tuple(slot for slot in slots_of(target.base.view, places) if slot.name.endswith(".mlp.fc2.weight"))
