"""The demo's report: what the distilled student of the tiny world is worth, in figures and pictures."""
