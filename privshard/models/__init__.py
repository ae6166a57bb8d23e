"""Bases: frozen, public vision transformers, their transforms and digests. The only place that imports timm."""
