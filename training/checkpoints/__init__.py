"""Crash-safe checkpoints: writing, verifying, loading and pruning."""
