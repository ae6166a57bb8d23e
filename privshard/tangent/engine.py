"""Which engine computes a linearized model: decided by the graph, never by the model's name."""

from __future__ import annotations

from privshard.models.vit import ViTView
from privshard.tangent.block_engine import BlockEngine
from privshard.tangent.class_row import ClassRowEngine, misfit
from privshard.tangent.linearize import first_linearized, linearized_stem


def tangent_engine(view: ViTView, *, blocks: int | str) -> ClassRowEngine | BlockEngine:
    """The class-row engine where the last block fits its form and is all that is linearized, else the k-block engine,
    whose `engine` then says what didn't fit. blocks: "all" linearizes the embeddings too.

    Both are exact and agree to rounding.
    """
    first, stem = first_linearized(view, blocks), linearized_stem(view, blocks)
    why = misfit(view, first_block=first, stem=stem)
    return ClassRowEngine(view) if why is None else BlockEngine(view, first_block=first, stem=stem, why=why)
