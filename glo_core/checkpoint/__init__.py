"""Checkpoints on disk, keyed by code shard."""
