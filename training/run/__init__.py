"""A run: its parts, what changes during it, its start, and its checkpoints."""
