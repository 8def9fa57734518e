"""Writes the comparison of runs: a Markdown table, JSON, and one self-contained HTML page."""
