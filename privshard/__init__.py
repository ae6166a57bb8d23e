"""Private, removable fine-tuning of vision transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privshard.api import (
        Recipe as Recipe,
    )
    from privshard.api import (
        Workspace as Workspace,
    )
    from privshard.api import (
        budget as budget,
    )
    from privshard.api import (
        evaluate as evaluate,
    )
    from privshard.api import (
        forget as forget,
    )
    from privshard.api import (
        influence as influence,
    )
    from privshard.api import (
        predict as predict,
    )
    from privshard.api import (
        train as train,
    )
    from privshard.api import (
        verify as verify,
    )
    from privshard.composition import compose as compose
    from privshard.tangent import linearize as linearize

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(
        ("Recipe", "Workspace", "budget", "evaluate", "forget", "influence", "predict", "train", "verify"),
        "privshard.api",
    ),
    "compose": "privshard.composition",
    "linearize": "privshard.tangent",
}
__all__ = ["__version__", *sorted(_HOMES)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import privshard` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'privshard' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
