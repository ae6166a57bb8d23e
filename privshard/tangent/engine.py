"""Which engine computes a linearized model: decided by the graph, never by the model's name."""

from __future__ import annotations

from privshard.models.vit import ViTView
from privshard.tangent.block_engine import BlockEngine
from privshard.tangent.class_row import ClassRowEngine, fits_class_row
from privshard.tangent.linearize import first_linearized


def tangent_engine(view: ViTView, *, blocks: int | str) -> ClassRowEngine | BlockEngine:
    """The class-row engine where the last block fits its form and is the only one linearized, else the k-block engine.

    Both are exact and agree to rounding.
    """
    first = first_linearized(view, blocks)
    return ClassRowEngine(view) if fits_class_row(view, first_block=first) else BlockEngine(view, first_block=first)
