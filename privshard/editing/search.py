"""The greedy search for where to edit: groups of blocks and kinds, judged by generalization and locality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from privshard.core.errors import InputError
from privshard.editing.measure import Measures
from privshard.editing.places import KINDS, Kind, Place

Evaluate = Callable[[tuple[Place, ...]], Measures]


@dataclass(frozen=True)
class Candidate:
    """One group of places, what editing there gives on average, and whether nothing else tried is better in both."""

    places: tuple[Place, ...]
    success: float
    generalization: float
    locality: float
    on_front: bool = False

    @property
    def score(self) -> float:
        """Harmonic mean of generalization and locality: zero where either is."""
        total = self.generalization + self.locality
        return 2 * self.generalization * self.locality / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "places": ",".join(map(str, self.places)),
            "success": self.success,
            "generalization": self.generalization,
            "locality": self.locality,
            "score": self.score,
            "on_front": self.on_front,
        }


def greedy_search(
    evaluate: Evaluate,
    *,
    blocks: Sequence[int],
    kinds: Sequence[Kind] = KINDS,
    group: int = 3,
    max_groups: int = 2,
    on_done: Callable[[int], None] = lambda done: None,
) -> tuple[tuple[Place, ...], list[Candidate]]:
    """The places that were chosen, and every candidate that was tried, in order.

    First every `group` consecutive blocks of `blocks` (fewer where there are fewer), for each kind; the best by score
    is kept. Then, at most until `max_groups` are joined, the group that raises the score most is added; it ends when
    none does. Ties go to what came first, so the same measures give the same choice.

    evaluate: measures of a set of places; InputError where they lack generalization or locality.
    """
    width = min(group, len(blocks))
    if width < 1 or max_groups < 1 or not kinds:
        raise InputError(
            f"search: expected blocks, kinds and groups of at least one, got {len(blocks)} blocks, {len(kinds)} kinds, "
            f"groups of {group}, at most {max_groups}."
        )
    starts = range(len(blocks) - width + 1)
    groups = [tuple(Place(block, kind) for block in blocks[at : at + width]) for kind in kinds for at in starts]
    tried: dict[tuple[Place, ...], Candidate] = {}
    best: Candidate | None = None
    for _ in range(max_groups):
        held = best.places if best else ()
        options = dict.fromkeys(tuple(sorted({*held, *extra})) for extra in groups)
        for places in options:
            if places not in tried:
                tried[places] = _candidate(places, evaluate(places))
                on_done(len(tried))
        found = max((tried[places] for places in options), key=lambda candidate: candidate.score)
        if best is not None and found.score <= best.score:
            break
        best = found
    assert best is not None
    return best.places, with_front(list(tried.values()))


def with_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, each told whether it lies on the Pareto front."""
    return [
        Candidate(c.places, c.success, c.generalization, c.locality, not any(_beats(other, c) for other in candidates))
        for c in candidates
    ]


def _beats(left: Candidate, right: Candidate) -> bool:
    """At least as good in both, better in one."""
    pairs = ((left.generalization, right.generalization), (left.locality, right.locality))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _candidate(places: tuple[Place, ...], found: Measures) -> Candidate:
    if found.generalization is None or found.locality is None:
        raise InputError(
            "search: expected groups of at least two images and sensitive examples, got "
            f"generalization {found.generalization} and locality {found.locality}.",
            remedy="Give more labelled images, so that some errors come in groups.",
        )
    return Candidate(places, found.success, found.generalization, found.locality)
