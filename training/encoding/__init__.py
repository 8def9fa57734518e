"""Latents and embeddings of a batch, computed online or read from a cache."""
