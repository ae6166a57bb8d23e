"""Decompose once, recompose at any size: a transformer's blocks as combinations of shared components over depth."""
