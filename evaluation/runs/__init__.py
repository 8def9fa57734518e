"""The folder of a run: its images, its manifest, and the JSON files of later commands."""
