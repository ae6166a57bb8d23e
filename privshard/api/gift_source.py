"""What `gift` commands act on: a workspace's model, one of its components, or a generator file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.core.errors import InputError, VerificationError
from privshard.core.jobs import MethodSpec
from privshard.core.model import BaseSpec

if TYPE_CHECKING:
    import numpy as np

    from privshard.adaptation.gift.files import Header
    from privshard.models.base import Base
    from privshard.store.workspace import Workspace


@dataclass(frozen=True, eq=False)
class Source:
    """Something learnt on one base, in the weight space. Everything in it is public.

    weights: component id, or digest of a generator -> its public weight. displacement: their weighted sum; None for a
    generator file, whose residual is made of the base's weights. parameters: the same names -> what generates it,
    the head's displacement included.
    """

    place: str
    base: BaseSpec
    base_digest: str
    method: MethodSpec
    classes: tuple[str, ...]
    weights: Mapping[str, float]
    displacement: Mapping[str, np.ndarray] | None
    parameters: Mapping[str, Mapping[str, np.ndarray]]

    def header(self, format: str) -> Header:
        """What a file made of this source says about itself."""
        from privshard.adaptation.gift.files import Header

        return Header(
            format=format,
            base=self.base_digest,
            base_spec=self.base,
            method=self.method.name,
            options=dict(self.method.options),
            sources=dict(self.weights),
            classes=self.classes,
        )


def open_source(place: str, *, component: str | None = None) -> Source:
    """The source at `place`, a workspace or a generator file; `component` takes one component of a workspace, alone.

    Raises InputError for a workspace whose components don't live in the weight space, or whose model is an ensemble,
    and for a component that the model doesn't have (the beginning of an id is enough).
    """
    if Path(place).is_file():
        if component is not None:
            raise InputError(f"component: {place} is a file, which holds one; got {component!r}.")
        return _from_file(Path(place))
    from privshard.store.workspace import Workspace

    with Workspace.open(place) as ws:
        return _from_workspace(ws, component)


def load_source_base(source: Source, *, weights: str | None = None) -> Base:
    """The base that a source was learnt on; `weights`: a file with its weights, where they lie elsewhere now.

    Raises InputError where that is another base, showing both sides.
    """
    from privshard.models.base import load_base

    spec = source.base if weights is None else replace(source.base, weights=weights)
    base = load_base(spec)
    if base.digest != source.base_digest:
        raise InputError(
            f"base: {source.place} was learnt on base {source.base.model} {source.base_digest[:16]}, but "
            f"{spec.weights} is base {spec.model} {base.digest[:16]}.",
            remedy="Use the weights that it was learnt on; a residual of one base means nothing on another.",
        )
    return base


def residual(source: Source, base: Base) -> dict[str, np.ndarray]:
    """The displacement of a source on its base, by the base's parameter names."""
    if source.displacement is not None:
        return dict(source.displacement)
    import torch

    from privshard.adaptation.method import AdapterMethod
    from privshard.api.methods import make_method

    method = make_method(source.method, base.view)
    assert isinstance(method, AdapterMethod)
    (arrays,) = source.parameters.values()
    theta = {name: torch.from_numpy(array) for name, array in arrays.items()}
    _check_shapes(source, {name: tuple(value.shape) for name, value in method.initial().items()}, arrays)
    return {name: value.numpy() for name, value in method.displacement(theta).items()}


def _check_shapes(source: Source, wanted: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]) -> None:
    given = {name: array.shape for name, array in arrays.items()}
    odd = [name for name in sorted(wanted.keys() | given.keys()) if wanted.get(name) != given.get(name)]
    if odd:
        shown = "; ".join(f"{n}: expected {wanted.get(n, 'none')}, got {given.get(n, 'none')}" for n in odd[:3])
        raise VerificationError(
            f"{source.place}: its parameters don't fit its header, {len(odd)} differ: {shown}.",
            remedy="Export it again.",
        )


def _from_file(path: Path) -> Source:
    from privshard.adaptation.gift.files import GENERATOR, load_file

    header, arrays = load_file(path, format=GENERATOR)
    (name,) = header.sources
    return Source(
        place=str(path),
        base=header.base_spec,
        base_digest=header.base,
        method=MethodSpec(header.method, header.options),
        classes=header.classes,
        weights=header.sources,
        displacement=None,
        parameters={name: arrays},
    )


def _from_workspace(ws: Workspace, component: str | None) -> Source:
    from privshard.api.reading import current_model
    from privshard.api.setup import Setup
    from privshard.composition.average import average

    setup, composition = Setup.load(ws), current_model(ws).composition
    weights: Mapping[str, float] = composition.weights
    if component is not None:
        weights = {_chosen(ws, component, composition.components): 1.0}
    elif composition.combine == "ensemble" and len(weights) > 1:
        raise InputError(
            f"{ws.root}: its model is an ensemble of {len(weights)} components, which no single set of weights is.",
            remedy="Choose one with --component, or train with compose: average.",
        )
    records = [ws.load_record(name) for name in weights]
    other = next((record for record in records if record.space != "weight"), None)
    if other is not None:
        raise InputError(
            f"{ws.root}: expected components in the weight space, got {other.method} in {other.space} space.",
            remedy="Train with method: {name: gift}; a linearized model has no merged weights.",
        )
    if not weights:
        raise InputError(f"{ws.root}: the current model has no component left.", remedy="Retrain a shard first.")
    with ws.objects.fetched({name: ws.component_path(name) for name in weights}) as files:
        displacement = average(files, weights)
    return Source(
        place=ws.root,
        base=setup.base,
        base_digest=setup.base_digest,
        method=setup.method,
        classes=setup.classes,
        weights=dict(weights),
        displacement=displacement,
        parameters={name: _parameters(ws, name) for name in weights},
    )


def _parameters(ws: Workspace, component: str) -> dict[str, Any]:
    """A component's generator, and the head's displacement beside it."""
    own = ws.load_parameters(component)
    if not own:
        return {}
    _, tensors = ws.load_component(component)
    return {**own, **{name: array for name, array in tensors.items() if name.startswith("head.")}}


def _chosen(ws: Workspace, component: str, known: tuple[str, ...]) -> str:
    found = [name for name in known if name.startswith(component)]
    if len(found) != 1:
        listed = ", ".join(name[:12] for name in known)
        problem = "which is the beginning of several" if found else "which the current model does not have"
        raise InputError(
            f"component: {ws.root} has {listed}; got {component!r}, {problem}.", remedy="Name one of them."
        )
    return found[0]
