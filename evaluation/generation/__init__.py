"""Generates the images of a run with any diffusers text-to-image pipeline, and times the pipeline."""
