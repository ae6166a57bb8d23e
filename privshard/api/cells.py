"""The file of a sweep: JSON lines, one a training, so that an interrupted sweep continues after the last one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from privshard.core.errors import InputError, ResourceError

if TYPE_CHECKING:
    from privshard.api.trial import Score

Kind = Literal["validation", "test"]


@dataclass(frozen=True)
class Cell:
    """One training of a sweep, and what it scored."""

    recipe: str
    kind: Kind
    lr: float
    seed: int
    accuracy: float
    num_rows: int
    train_s: float
    peak_bytes: int | None

    @staticmethod
    def of(recipe: str, kind: Kind, lr: float, seed: int, score: Score) -> Cell:
        """A training's cell."""
        return Cell(recipe, kind, lr, seed, score.accuracy, score.num_rows, score.train_s, score.peak_bytes)


class Cells:
    """The cells of one sweep, in memory and in its file. A cell is written whole: a line that an interruption cut off
    is removed when the file is opened again, and its training is repeated."""

    def __init__(self, file: IO[bytes], lines: list[dict[str, Any]]) -> None:
        self._file = file
        self._parameters = {line["recipe"]: line["parameters"] for line in lines if "parameters" in line}
        self._cells = [Cell(**line) for line in lines if "accuracy" in line]

    @staticmethod
    @contextmanager
    def open(path: Path, *, sweep: str) -> Iterator[Cells]:
        """The file at `path`, made if it isn't there. sweep: digest of what is swept.

        InputError for a file of another sweep, or of something else; ResourceError while another sweep writes it.
        """
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the file is closed
            except BlockingIOError:
                raise ResourceError(
                    f"out: {path} is being written by another sweep.", remedy="Wait for its end, or give another file."
                ) from None
            file.seek(0)
            whole = file.read()
            if _line({"sweep": sweep}).startswith(whole):  # cut off before the first line's end
                whole = b""
            end = whole.rfind(b"\n") + 1
            lines = _parsed(whole[:end], path)
            if whole and (not lines or lines[0].get("sweep") != sweep):
                raise InputError(
                    f"out: expected a new file, or that of this very sweep, got {path}, which holds another one.",
                    remedy="Give another file, or delete it. Recipes, rates, seeds, folds and limit name a sweep.",
                )
            file.truncate(end)
            cells = Cells(file, lines)
            if not whole:
                cells._write({"sweep": sweep})
            yield cells

    def __len__(self) -> int:
        return len(self._cells)

    def find(self, recipe: str, kind: Kind, lr: float | None, seed: int) -> Cell | None:
        """The cell of a training; lr None: at whatever rate."""
        for cell in self._cells:
            if (cell.recipe, cell.kind, cell.seed) == (recipe, kind, seed) and lr in (None, cell.lr):
                return cell
        return None

    def get(self, recipe: str, kind: Kind, lr: float, seed: int) -> Cell:
        """The cell of a training that was done."""
        found = self.find(recipe, kind, lr, seed)
        assert found is not None
        return found

    def add(self, cell: Cell) -> None:
        """Keep one more training."""
        self._write(asdict(cell))
        self._cells.append(cell)

    def note(self, recipe: str, parameters: int) -> None:
        """Keep how many parameters a recipe trains."""
        if recipe not in self._parameters:
            self._write({"recipe": recipe, "parameters": parameters})
            self._parameters[recipe] = parameters

    def parameters(self, recipe: str) -> int | None:
        """How many parameters a recipe trains; None where it was not begun."""
        return self._parameters.get(recipe)

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(_line(value))
        self._file.flush()
        os.fsync(self._file.fileno())


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()


def _parsed(text: bytes, path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in text.splitlines()]
    except ValueError as error:
        raise InputError(f"out: expected the JSON lines of a sweep in {path}, got something else: {error}.") from error
    return [line for line in lines if isinstance(line, dict)]
