"""The cells of the accuracy table: which there are, in order of importance, and about what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from privshard.core.digest import json_digest

SIZES = {"sign_language_digits": 1564, "flowers12": 720, "cifar10": 50000, "omniglot_small": 3630}
"""Data sets of the table, with the number of training rows: public constants of public data."""

SUBJECTS = {"sign_language_digits": 165, "omniglot_small": 120}
"""Those in which somebody has several rows, with a public number of them."""

_SHARDS = (1, 5, 10, 20)
_EPSILONS = (None, 8.0, 3.0, 1.0)


@dataclass(frozen=True)
class Cell:
    """One number of the table. blocks: 0 for the head alone. epsilon None: no differential privacy."""

    data: str
    method: str
    blocks: int
    shards: int
    epsilon: float | None
    unit: str = "example"
    seed: int = 0

    @property
    def key(self) -> str:
        """What names the cell in a results file."""
        return json_digest(self.to_json())[:16]

    @property
    def work(self) -> float:
        """Example-blocks that its training passes: what its time is about proportional to."""
        passes = {"head": 2.0, "tangent": 60.0}.get(self.method, 200.0) if self.epsilon else 400.0
        return SIZES.get(self.data, 1000) * passes * max(0.05, {0: 0.0, 1: 0.1}.get(self.blocks, float(self.blocks)))

    @property
    def kind(self) -> str:
        """Method and blocks, by which `--kinds` chooses: cells of a kind share their encodings."""
        return f"{self.method}-{self.blocks}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def headline() -> list[Cell]:
    """The cells that the text of the README quotes: three seeds each where noise is drawn."""
    digits = "sign_language_digits"
    cells = [Cell(digits, "tangent", 1, shards, None) for shards in (1, 5, 10)]
    cells += [
        Cell(digits, "tangent", 1, shards, epsilon, seed=seed)
        for seed in range(3)
        for shards in (1, 5)
        for epsilon in (1.0, 3.0, 8.0)
    ]
    cells += [Cell(digits, "tangent", 4, 1, None)]
    big = "cifar10"
    cells += [Cell(big, method, blocks, s, e) for method, blocks in _PRIVATE for e in (8.0, 3.0) for s in (1, 10)]
    cells += [Cell(big, method, blocks, s, None) for method, blocks in _PRIVATE[:2] for s in (1, 10)]
    cells += [Cell(big, "tangent", 1, 20, epsilon) for epsilon in (None, 8.0)]
    return [*cells, *(Cell(big, "full", 12, s, None) for s in (10, 1))]


def all_cells(*, data: Sequence[str] = tuple(SIZES), seeds: int = 1) -> list[Cell]:
    """Every cell, the headline ones first, the cheap ones before the dear ones."""
    rest = [
        Cell(name, method, blocks, shards, epsilon, unit, seed)
        for name in data
        for method, blocks in (("head", 0), ("tangent", 1), ("tangent", 4), ("tangent", 12), ("full", 12))
        for shards in _SHARDS
        for epsilon in _EPSILONS
        for unit in (("example", "subject") if name in SUBJECTS and epsilon is not None else ("example",))
        for seed in range(seeds)
    ]
    first = [cell for cell in headline() if cell.data in data]
    return list(dict.fromkeys([*first, *sorted(rest, key=lambda cell: cell.work)]))


_PRIVATE = (("head", 0), ("tangent", 1), ("tangent", 4), ("tangent", 12))
