"""Combining components: averages of displacements, of logits, and what a composition scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privshard.composition.displacements import compose as compose


def __getattr__(name: str) -> Any:
    """Import `compose`, and with it torch, when it is first asked for."""
    if name != "compose":
        raise AttributeError(f"module 'privshard.composition' has no attribute {name!r}")
    from privshard.composition.displacements import compose

    return compose
