"""Runs beside the library: Ray entry points, recipes, benchmarks and the pretraining of the embedded base."""
