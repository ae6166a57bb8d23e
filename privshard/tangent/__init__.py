"""Tangent transformers: linearization, its engines, and caches of frozen activations."""

from privshard.tangent.linearize import LinearizedViT as LinearizedViT
from privshard.tangent.linearize import linearize as linearize
