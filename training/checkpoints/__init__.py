"""Checkpoints that a crash cannot damage, and the state of a run that they hold."""
