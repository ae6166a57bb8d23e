"""The models whose logits make up a composition: one that is displaced by an average, or one a component."""

from __future__ import annotations

from privshard.core.model import Composition


def members(composition: Composition) -> list[tuple[float, dict[str, float]]]:
    """(weight, component -> weight of its displacement) for every model that has to be run; the composition's logits
    are the weighted sum of theirs.

    "average", "curvature": one model. "ensemble": one for each component that averages, under that component alone and
    everything that is added. Without components that average it is one model, the base with what is added.

    >>> members(Composition.uniform("b", ["c0", "c1"], combine="ensemble"))
    [(0.5, {'c0': 1.0}), (0.5, {'c1': 1.0})]
    """
    added = {name: composition.weights[name] for name in sorted(composition.added)}
    averaged = composition.averaged
    if composition.combine != "ensemble" or not averaged:
        return [(1.0, {**averaged, **added})]
    return [(weight, {name: 1.0, **added}) for name, weight in averaged.items()]


def arithmetic(composition: Composition, *, linear: bool) -> bool:
    """Whether the composition's logits follow from those of its components alone, exactly: where components are linear
    in their displacement, in an ensemble, and for one component of weight one. Never where something is added that
    isn't linear, or for several components by their curvature; the empty composition is the base."""
    if composition.combine == "curvature" and len(composition.averaged) > 1:
        return False
    if composition.added:
        return linear
    alone = list(composition.weights.values()) in ([], [1.0])
    return linear or alone or composition.combine == "ensemble"
