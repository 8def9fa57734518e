"""The folder of a run: its images, its manifest, and the JSON files that later commands add."""
