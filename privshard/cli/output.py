"""Writing the one result of a command: strict JSON, or a summary for people."""

from __future__ import annotations

import contextlib
import json
import math
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDTH = 120


def json_text(value: dict[str, Any]) -> str:
    """One JSON object on one line. JSON has no NaN and no infinity: such numbers become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False) + "\n"


def summary_text(renderable: RenderableType, *, stream: TextIO) -> str:
    """What rich makes of `renderable` for `stream`: styled on a terminal, plain and wide enough elsewhere."""
    from rich.console import Console

    terminal = stream.isatty()
    console = Console(file=stream, width=None if terminal else _WIDTH, highlight=False, force_terminal=terminal)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def write(text: str, stream: TextIO) -> None:
    """Write and flush; that whoever read our output has gone (`| head`) is no error."""
    with contextlib.suppress(BrokenPipeError):
        stream.write(text)
        stream.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
