"""Checks of the components: those of the model are whole, of one kind and committed, and no others are left."""

from __future__ import annotations

import numpy as np

from privshard.composition.curvature import RIDGE, check_curvature
from privshard.core.errors import PrivshardError, VerificationError
from privshard.core.model import ComponentRecord
from privshard.store.layout import (
    COMPONENTS,
    CURVATURE,
    PARAMETERS,
    PRIVATE,
    component_path,
    component_record_path,
    curvature_path,
    parameters_path,
    private_path,
)
from privshard.store.views import Reservation
from privshard.unlearning.evidence import Evidence, Finding, Loaded
from privshard.unlearning.pending import pending_plans


def components(evidence: Evidence) -> Finding:
    """Every component of the model is committed, has the tensors its id names, and a record that agrees with all."""
    runs = {run.component: run for run in evidence.workspace.ledger.reservations() if run.state == "committed"}
    problems, records = [], []
    for component, found in evidence.components.items():
        if isinstance(found, PrivshardError):
            problems.append(found.message)
            continue
        records.append(found.record)
        wrong = _against_ledger(found.record, runs.get(component), evidence)
        problems += [*_parameters(evidence, component), *_curvature(evidence, found)]
        problems += [f"Component {component}: {words}" for words in wrong]
    problems += _among_each_other(records)
    return Finding(problems, f"{len(records)} component(s), whole, committed, and with records that agree.")


def component_shapes(evidence: Evidence) -> Finding:
    """All components hold tensors of the same names, shapes and types: their size tells nothing about a shard."""
    loaded = {name: found for name, found in evidence.components.items() if isinstance(found, Loaded)}
    first = next(iter(loaded.values()), None)
    problems = [
        f"Component {name} holds other tensors than component {first.record.id}: their names, shapes or types differ."
        for name, found in loaded.items()
        if first and dict(found.kinds) != dict(first.kinds)
    ]
    return Finding(problems, f"{len(first.kinds) if first else 0} tensor(s) of the same shapes in each component.")


def leftover_components(evidence: Evidence) -> Finding:
    """No file of a dropped, replaced or uncommitted component is left, its example list included."""
    paths = (component_path, component_record_path, parameters_path, curvature_path, private_path)
    expected = {path(component) for component in evidence.live for path in paths}
    objects, folders = evidence.workspace.objects, (COMPONENTS, PARAMETERS, CURVATURE, PRIVATE)
    left = [path for folder in folders for path in objects.list(folder) if path not in expected]
    return Finding([f"{path} belongs to no component that counts." for path in left], "None is left.")


def example_lists(evidence: Evidence) -> Finding:
    """Each component's private list names exactly the rows of its shard.

    A removal takes rows out of a shard only together with its component, so the two are equal at any time but while
    a removal is open: then rows, or the list itself, may be gone already.
    """
    problems, compared = [], 0
    runs = {run.component: run.shard for run in evidence.workspace.ledger.reservations()}
    shards_open = {action.shard for plan in pending_plans(evidence.workspace.ledger) for action in plan.actions}
    for component in evidence.model.composition.averaged:
        shard = runs.get(component)
        rows = None if shard is None else evidence.readable.get(evidence.workspace.shard_dir(shard))
        if rows is None:
            continue
        compared += 1
        try:
            listed = _examples(evidence, component)
        except VerificationError as error:
            problems += [] if shard in shards_open else [error.message]
            continue
        same = set(rows.ids) <= set(listed) if shard in shards_open else rows.ids == listed
        if not same:
            problems.append(f"{private_path(component)} does not name the {len(rows.ids)} rows of shard {shard}.")
    return Finding(problems, f"{compared} list(s) name exactly the rows of their shards.")


def _parameters(evidence: Evidence, component: str) -> list[str]:
    """Whether the parameters beside a component are those that its record names."""
    try:
        evidence.workspace.load_parameters(component)
    except PrivshardError as error:
        return [error.message]
    return []


def _curvature(evidence: Evidence, found: Loaded) -> list[str]:
    """Whether the curvature beside a component is the one that its record names, about these tensors and positive; and
    whether there is one exactly where the composition goes by it."""
    component = found.record.id
    try:
        kept = evidence.workspace.load_curvature(component)
        if evidence.model.composition.combine != "curvature":
            return [f"Component {component} has a curvature, which its composition doesn't use."] if kept else []
        shapes = {name: shape for name, (_, shape) in found.kinds.items()}
        check_curvature(component, {name: array.shape for name, array in kept.items()}, shapes)
    except PrivshardError as error:
        return [error.message]
    finite = all(np.isfinite(array).all() for array in kept.values())
    ridges = [float(array) for name, array in kept.items() if name.startswith(RIDGE)]
    if not finite or min(ridges) < 0:
        return [f"Component {component}: its curvature holds numbers that aren't finite, or a ridge below 0."]
    return []


def _examples(evidence: Evidence, component: str) -> tuple[str, ...]:
    value = evidence.workspace.objects.read_json(private_path(component))
    if not isinstance(value, dict) or not isinstance(value.get("examples"), list):
        raise VerificationError(f"{private_path(component)} is not a component's private file.")
    return tuple(value["examples"])


def _against_ledger(record: ComponentRecord, run: Reservation | None, evidence: Evidence) -> list[str]:
    """Where a record says something else than the ledger."""
    if run is None:
        return ["it is in the model, but the ledger committed no such component."]
    base, plan = evidence.model.composition.base, run.plan
    expected = {
        "shard": run.shard,
        "attempt": run.attempt,
        "base": evidence.facts.get("base_digest", base),
        "recipe": evidence.facts.get("recipe_digest"),
        "secure_randomness": evidence.facts.get("insecure_seed") is None,
    }
    wrong = [
        f"its record says {name} {getattr(record, name)}, the ledger {value}."
        for name, value in expected.items()
        if getattr(record, name) != value
    ]
    if record.base != base:
        wrong.append(f"its record says base {record.base}, the model {base}.")
    spend = record.spend
    if (spend.unit, spend.delta, spend.accountant, spend.adjacency, spend.epsilon is not None) != (
        plan.unit, plan.delta, plan.accountant, plan.adjacency, plan.private
    ):  # fmt: skip
        wrong.append(f"its record says it spent {spend}, which is not of the kind that the ledger reserved.")
    return wrong


def _among_each_other(records: list[ComponentRecord]) -> list[str]:
    """What differs between components that have to be alike: all were trained by one recipe."""
    problems = []
    for name in ("method", "space", "spend"):
        values = {getattr(record, name) for record in records}
        if len(values) > 1:
            problems.append(f"The components' records differ in {name}: {'; '.join(sorted(map(str, values)))}.")
    shards = [record.shard for record in records]
    if len(set(shards)) != len(shards):
        problems.append(f"The model holds two components of one shard: {sorted(shards)}.")
    return problems
