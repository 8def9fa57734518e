"""The published folder: its layout, its replacement in one step, and the verification of its files."""
