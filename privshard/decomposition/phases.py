"""Which parts of a decomposed model train when: phases that add components, and what else moves in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from privshard.core.errors import InputError

PlainPolicy = Literal["every", "first"]


@dataclass(frozen=True)
class Phase:
    """One phase. Components first to last - 1 (from 0) train; those before are frozen."""

    index: int
    first: int
    last: int
    embeddings: bool
    head: bool


def plan_phases(added: Sequence[int], *, embeddings: PlainPolicy, head: PlainPolicy) -> tuple[Phase, ...]:
    """The phases that add so many components each.

    embeddings, head: whether what comes before the blocks, and the final norm with the classifier, train in every phase
    or in the first alone. Where they train in every phase, each phase keeps its own copy, so that a model of the first
    components is still the one that its phase ended with.

    >>> [(phase.first, phase.last, phase.head) for phase in plan_phases([1, 1, 2], embeddings="every", head="first")]
    [(0, 1, True), (1, 2, False), (2, 4, False)]
    """
    if not added or min(added) < 1:
        raise InputError(f"components: expected a number for each phase, 1 or more, got {list(added)}.")
    ends = list(accumulate(added))
    return tuple(
        Phase(index, end - count, end, embeddings == "every" or index == 0, head == "every" or index == 0)
        for index, (count, end) in enumerate(zip(added, ends, strict=True))
    )
