"""Differential privacy of one shard's training: randomness, sampling, clipping, noise and what they spend."""
