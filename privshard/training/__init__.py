"""Training of one shard by any method."""
