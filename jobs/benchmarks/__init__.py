"""Benchmarks: each compares with its peers in one process, and prints a floor beside every figure."""
