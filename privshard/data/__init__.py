"""Examples: read from Parquet or class folders, kept as a private copy in shards, handed out as image batches."""
