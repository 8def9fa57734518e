"""The export of a student as one file, in the layout of the original checkpoints."""
