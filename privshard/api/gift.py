"""`gift merge`, `gift unmerge` and `gift export`: between components, generator files and plain timm weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.api.gift_source import Source, load_source_base, open_source, residual
from privshard.core.errors import InputError, VerificationError

if TYPE_CHECKING:
    import numpy as np

    from privshard.models.base import Base

_TOLERANCE = 1e-5
_PROBES = 4


def merge(source: str, *, out: str, into: str | None = None, component: str | None = None) -> dict[str, Any]:
    """Fold what was learnt into plain weights: W + D, in double precision, rounded once.

    The file loads strictly into the timm model that `loads_into` names, and needs nothing of privshard. Its header says
    what was merged into which base. Guaranteed: on random images its logits are those of the unmerged model to 1e-5, or
    VerificationError and no file.

    source: a workspace (its current model, or one `component` of it) or a generator file. into: the base's weights,
    where they aren't where the source says. Raises InputError where `into` is merged already, or another base: both
    sides are shown.
    """
    from privshard.adaptation.gift.files import MERGED, save_file
    from privshard.adaptation.gift.merge import merge_state
    from privshard.models.base import constructor

    learnt = open_source(source, component=component)
    if into is not None:
        _refuse_merged(into, learnt)
    base = load_source_base(learnt, weights=into)
    displacement = residual(learnt, base)
    merged = merge_state(base.state, displacement)
    difference = _difference(learnt, base, merged, displacement)
    if difference > _TOLERANCE:
        raise VerificationError(
            f"merge: expected logits of the unmerged model to {_TOLERANCE:g}, got a difference of {difference:g}.",
            remedy="The residual is too large for fp32: train with a lower rate.",
        )
    save_file(Path(out), learnt.header(MERGED), merged)
    callable_name, arguments = constructor(base)
    return {
        "out": str(out),
        "base": {"name": learnt.base.model, "digest": learnt.base_digest},
        "method": {"name": learnt.method.name, **learnt.method.options},
        "sources": dict(learnt.weights),
        "num_changed": len(displacement),
        "num_tensors": len(merged),
        "max_logit_difference": difference,
        "loads_into": {"callable": callable_name, "arguments": arguments},
        "classes": list(learnt.classes),
    }


def unmerge(merged: str, *, source: str, out: str, base: str | None = None) -> dict[str, Any]:
    """Take a residual out of merged weights again.

    Where the base that the header names can be loaded (from where it lay, or from `base`), the file is checked to be
    base + residual and the base's own bits are written: exact. Where it can't, W = M - D is computed, each weight
    within `bound` of the base's, since merging rounds and several W can give one M; the digest then tells whether all
    bits came back (`exact`).

    source: what was merged, a workspace or generator file. Raises InputError where that is not what the file says was
    merged, showing both sides; VerificationError where the file is not base + residual.
    """
    from privshard.adaptation.gift.files import MERGED, load_file, save_base

    header, arrays = load_file(Path(merged), format=MERGED)
    component = next(iter(header.sources)) if len(header.sources) == 1 and not Path(source).is_file() else None
    learnt = open_source(source, component=component)
    if (learnt.base_digest, dict(learnt.weights)) != (header.base, dict(header.sources)):
        raise InputError(
            f"unmerge: {merged} is {header.about()}, but {source} is {learnt.header(MERGED).about()}.",
            remedy="Name what was merged into the file.",
        )
    found = _base_or_none(learnt, base)
    if found is not None:
        _check_sum(merged, arrays, found, residual(learnt, found))
        state, bound, how = found.state, 0.0, "base"
    else:
        state, bound = _by_arithmetic(learnt, arrays)
        how = "arithmetic"
    exact = how == "base" or _digest(learnt, state) == learnt.base_digest
    save_base(Path(out), learnt.base_digest, learnt.base, state, exact=exact)
    return {
        "out": str(out),
        "base": {"name": learnt.base.model, "digest": learnt.base_digest},
        "how": how,
        "exact": exact,
        "bound": bound,
        "reason": _REASONS[how],
    }


_REASONS = {
    "base": "The base was at hand: the file is it plus the residual, so its own bits were written.",
    "arithmetic": "The base was not at hand: the residual was subtracted. Merging rounded every weight once, and this "
    "once more; where a weight is much smaller than its residual, its last digits are lost for good.",
}


def export(workspace: str, *, out: str, component: str | None = None) -> dict[str, Any]:
    """Write one component's generator, with the head, as a file of a few kilobytes: `merge` and `explain` take it.

    Raises InputError where the model has several components and none is named: generators of different components
    don't average, only their residuals do.
    """
    from privshard.adaptation.gift.files import GENERATOR, save_file

    learnt = open_source(workspace, component=component)
    if len(learnt.parameters) != 1:
        names = ", ".join(name[:12] for name in learnt.parameters)
        raise InputError(
            f"component: {workspace} has {len(learnt.parameters)} components ({names}), but a file holds one.",
            remedy="Name one with --component. The composed model is for `gift merge`.",
        )
    ((name, arrays),) = learnt.parameters.items()
    if not arrays:
        raise InputError(f"{workspace}: expected components with a generator, got {learnt.method.name} without one.")
    save_file(Path(out), learnt.header(GENERATOR), arrays)
    return {
        "out": str(out),
        "component": name,
        "base": {"name": learnt.base.model, "digest": learnt.base_digest},
        "method": {"name": learnt.method.name, **learnt.method.options},
        "num_parameters": sum(array.size for key, array in arrays.items() if not key.startswith("head.")),
        "num_head_parameters": sum(array.size for key, array in arrays.items() if key.startswith("head.")),
    }


def _refuse_merged(path: str, learnt: Source) -> None:
    from privshard.adaptation.gift.files import MERGED, read_header

    header = read_header(Path(path))
    if header is not None:
        raise InputError(
            f"into: expected the plain weights of base {learnt.base.model} {learnt.base_digest[:16]} to merge "
            f"{learnt.header(MERGED).about()} into, but {path} is merged already: {header.about()}.",
            remedy="Merge into the base, or unmerge first. Several components are composed, then merged once.",
        )


def _difference(
    learnt: Source, base: Base, merged: Mapping[str, np.ndarray], displacement: Mapping[str, np.ndarray]
) -> float:
    """The largest difference between the logits of the merged and of the unmerged model, on random images."""
    import torch

    from privshard.api.methods import make_method

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_PROBES, *base.transform_config["input_size"], generator=generator)
    method = make_method(learnt.method, base.view)
    moved = {name: torch.from_numpy(array) for name, array in displacement.items()}
    want = method.logits(method.encode(x), moved)
    state = {name: torch.from_numpy(array) for name, array in merged.items()}
    with torch.no_grad():
        got = torch.func.functional_call(base.view.model, state, (x,))
    return float((got - want).abs().max())


def _base_or_none(learnt: Source, weights: str | None) -> Base | None:
    """The base, if it can be had; a file that the caller names must be it."""
    from privshard.core.errors import PrivshardError

    try:
        return load_source_base(learnt, weights=weights)
    except PrivshardError:
        if weights is not None:
            raise
        return None


def _check_sum(path: str, arrays: Mapping[str, np.ndarray], base: Base, displacement: Mapping[str, np.ndarray]) -> None:
    """VerificationError unless the file is base + residual, up to the rounding of another machine."""
    import numpy as np

    from privshard.adaptation.gift.merge import merge_state

    want = merge_state(base.state, displacement)
    for name in sorted(want.keys() | arrays.keys()):
        if name not in want or name not in arrays or want[name].shape != arrays[name].shape:
            raise VerificationError(f"{path}: expected the tensors of base {base.spec.model}, {name} differs.")
        scale = float(np.abs(want[name]).max(initial=0.0))
        if not np.allclose(want[name], arrays[name], rtol=0, atol=1e-6 * scale):
            raise VerificationError(
                f"{path}: expected base plus residual, but {name} differs by up to "
                f"{float(np.abs(want[name] - arrays[name]).max()):g}.",
                remedy="It was changed after merging; it can't be taken apart.",
            )


def _by_arithmetic(learnt: Source, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    from privshard.adaptation.gift.merge import unmerge_state

    if learnt.displacement is None:
        raise InputError(
            f"unmerge: a generator makes its residual of the base's weights, and {learnt.base.weights} of base "
            f"{learnt.base.model} {learnt.base_digest[:16]} can't be loaded.",
            remedy="Name a file with them as the base, or the workspace as the source.",
        )
    back = unmerge_state(arrays, learnt.displacement)
    return back.state, back.bound


def _digest(learnt: Source, state: Mapping[str, np.ndarray]) -> str:
    from privshard.models.base import load_base

    return load_base(learnt.base, state=state).digest
